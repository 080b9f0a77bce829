"""What step() costs on the host around the kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import machine
from .contestant import Contestant
from .preparation import (
    SEED,
    Entry,
    Settings,
    gradient_sets,
)
from .timing import (
    Action,
    interleave,
    now,
    quantiles,
    rounded,
)
from .workloads import TORCH_FUSED, Workload

NAME = "host: step() around the kernel"
# targets, by what a gradient did since the last step
PER_STEP_US = 20.0
PER_PARAMETER_US = {"kept": 0.25, "new each step": 0.6}
COUNTS = (2, 148, 600)


def allowed_us(count: int, gradients: str) -> float:
    """The most that a step over `count` parameters may cost on the host."""
    return PER_STEP_US + PER_PARAMETER_US[gradients] * count


@dataclasses.dataclass
class KernelClock:
    """Nanoseconds inside the CPU kernel's entry point; zero if nothing went through it."""

    total: int = 0

    def take(self) -> int:
        taken, self.total = self.total, 0
        return taken


@contextmanager
def kernel_clock() -> Iterator[KernelClock]:
    """Time every call of the CPU kernel. The clock's own cost stays with the host's share."""
    from stackelberg_fused import _cpu

    clock, kernel = KernelClock(), _cpu.step

    def timed(*arguments: Any, **options: Any) -> None:
        start = now()
        kernel(*arguments, **options)
        clock.total += now() - start

    _cpu.step = timed
    try:
        yield clock
    finally:
        _cpu.step = kernel


@dataclasses.dataclass
class WithoutKernel(Action):
    """An action whose samples leave out the time inside the CPU kernel."""

    clock: KernelClock = dataclasses.field(default_factory=KernelClock)
    kernel_ns: list[float] = dataclasses.field(default_factory=list)

    def _stepwise_burst(self) -> float:
        self.clock.take()
        whole = super()._stepwise_burst()
        self.kernel_ns.append(self.clock.take() / self.inner)
        return whole - self.kernel_ns[-1]


def _workload(count: int, gradients: str) -> Workload:
    return Workload(
        f"{count} parameters of 16 elements",
        ((16,),) * count,
        (0,) * (count - 1) + (1,),
        1,
        new_gradients=gradients != "kept",
    )


def _action(contestant: Contestant, workload: Workload, device: str) -> Action:
    entry = Entry.build(contestant, workload, workload.tensors(device, SEED, 1.0))
    action = entry.action(device, *gradient_sets(workload, device, SEED))
    action.host_only = True
    return action


def _case(
    mine: Contestant,
    fused: Contestant,
    workload: Workload,
    settings: Settings,
    seconds: float,
    patience: float,
) -> dict[str, Any]:
    device, count = settings.device, len(workload.shapes)
    whole, theirs = (_action(c, workload, device) for c in (mine, fused))
    with kernel_clock() if device == "cpu" else _no_clock() as clock:
        around = WithoutKernel(whole.call, device, whole.before, True, clock=clock)
        samples, load = machine.quietly(
            lambda: interleave(
                {mine.name: around, TORCH_FUSED: theirs}, settings.rounds, seconds, SEED
            ),
            patience,
        )
    found = quantiles(samples[mine.name])
    gradients = "new each step" if workload.new_gradients else "kept"
    allowed = allowed_us(count, gradients)
    # the clock ran in earlier attempts and in the calibration too
    kernel = quantiles(around.kernel_ns[-len(samples[mine.name]) :])
    return found | {
        "parameters": count,
        "gradients": gradients,
        "kernel_p50_ns": kernel["p50_ns"],
        "allowed_us": allowed,
        "met": found["p50_ns"] <= allowed * 1e3 if load["quiet"] else None,
        "torch_fused_whole_step": quantiles(samples[TORCH_FUSED]),
        "samples_ns": rounded(samples[mine.name]),
        "load": load,
    }


def run(
    mine: Contestant, fused: Contestant, settings: Settings, counts: tuple[int, ...] = COUNTS
) -> dict[str, Any]:
    """A row: our step less the time inside the kernel; torch's whole step beside it.

    On a GPU the call returns before the kernel has run, so the call is the host's share.
    """
    cases = 2 * len(counts)
    seconds, patience = settings.seconds / cases, settings.patience / cases
    row: dict[str, Any] = {"name": NAME, "device": settings.device, "backend": mine.name}
    row["cases"] = [
        _case(mine, fused, _workload(count, gradients), settings, seconds, patience)
        for count in counts
        for gradients in PER_PARAMETER_US
    ]
    row["per_parameter_us"] = {
        gradients: _slope([c for c in row["cases"] if c["gradients"] == gradients])
        for gradients in PER_PARAMETER_US
    }
    return row


@contextmanager
def _no_clock() -> Iterator[KernelClock]:
    yield KernelClock()


def _slope(cases: list[dict[str, Any]]) -> float:
    few, many = cases[0], cases[-1]
    rise = many["p50_ns"] - few["p50_ns"]
    return round(rise / (many["parameters"] - few["parameters"]) / 1e3, 4)
