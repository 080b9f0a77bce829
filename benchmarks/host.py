"""The host row: the cost of step() on the host around the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from . import machine
from .contestant import Contestant
from .formatting import duration, load_summary, verdict
from .preparation import (
    SEED,
    MeasurementSettings,
    PreparedContestant,
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
# targets; those per parameter depend on the gradient's fate since the last step
PER_STEP_US = 20.0
PER_PARAMETER_US = {"kept": 0.25, "new each step": 0.6}
COUNTS = (2, 148, 600)


def allowed_us(count: int, gradients: str) -> float:
    """Return the most microseconds that a step over `count` parameters may cost on the host."""
    return PER_STEP_US + PER_PARAMETER_US[gradients] * count


@dataclass
class KernelClock:
    """Nanoseconds inside the CPU kernel's entry point; zero if nothing was called."""

    total: int = 0

    def take(self) -> int:
        """Return the time since the last call of this method."""
        taken, self.total = self.total, 0
        return taken


@contextmanager
def kernel_clock() -> Iterator[KernelClock]:
    """Time every call of the CPU kernel. The clock's own cost counts as the host's."""
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


@dataclass
class ActionWithoutKernel(Action):
    """An action whose samples leave out the time inside the CPU kernel."""

    clock: KernelClock = field(default_factory=KernelClock)
    kernel_ns: list[float] = field(default_factory=list)

    def _time_each_call(self) -> float:
        self.clock.take()
        total = super()._time_each_call()
        self.kernel_ns.append(self.clock.take() / self.iterations)
        return total - self.kernel_ns[-1]


def tiny_workload(count: int, gradients: str) -> Workload:
    """Return a workload whose step costs hardly more than its work on the host."""
    return Workload(
        f"{count} parameters of 16 elements",
        ((16,),) * count,
        (0,) * (count - 1) + (1,),
        1,
        new_gradients=gradients != "kept",
    )


def _action(contestant: Contestant, workload: Workload, device: str) -> Action:
    start = workload.tensors(device, SEED, 1.0)
    prepared = PreparedContestant.build(contestant, workload, start)
    action = prepared.action(device, *gradient_sets(workload, device, SEED))
    action.host_only = True
    return action


def _case(
    ours: Contestant,
    torch_fused: Contestant,
    workload: Workload,
    settings: MeasurementSettings,
    seconds: float,
    patience: float,
) -> dict[str, Any]:
    device, count = settings.device, len(workload.shapes)
    our_action, torch_action = (_action(c, workload, device) for c in (ours, torch_fused))
    # on a GPU the call returns before the kernel has run
    with kernel_clock() if device == "cpu" else contextlib.nullcontext(KernelClock()) as clock:
        host_action = ActionWithoutKernel(
            our_action.call, device, our_action.setup, True, clock=clock
        )
        actions = {ours.name: host_action, TORCH_FUSED: torch_action}
        samples, load = machine.measure_when_quiet(
            lambda: interleave(actions, settings.rounds, seconds, SEED), patience
        )
    times = quantiles(samples[ours.name])
    allowed = allowed_us(count, workload.gradients)
    # the clock also ran in earlier attempts and during calibration
    kernel_times = quantiles(host_action.kernel_ns[-len(samples[ours.name]) :])
    return times | {
        "parameters": count,
        "gradients": workload.gradients,
        "kernel_p50_ns": kernel_times["p50_ns"],
        "allowed_us": allowed,
        "met": times["p50_ns"] <= allowed * 1e3 if load["quiet"] else None,
        "torch_fused_whole_step": quantiles(samples[TORCH_FUSED]),
        "samples_ns": rounded(samples[ours.name]),
        "load": load,
    }


def run(
    ours: Contestant,
    torch_fused: Contestant,
    settings: MeasurementSettings,
    counts: tuple[int, ...] = COUNTS,
) -> dict[str, Any]:
    """Measure the row: our step less the time inside the kernel, and torch's whole step beside it."""
    cases = len(PER_PARAMETER_US) * len(counts)
    seconds, patience = settings.seconds / cases, settings.patience / cases
    row: dict[str, Any] = {"name": NAME, "device": settings.device, "backend": ours.name}
    row["cases"] = [
        _case(ours, torch_fused, tiny_workload(count, gradients), settings, seconds, patience)
        for count in counts
        for gradients in PER_PARAMETER_US
    ]
    row["per_parameter_us"] = {
        gradients: _slope_us([c for c in row["cases"] if c["gradients"] == gradients])
        for gradients in PER_PARAMETER_US
    }
    return row


def _slope_us(cases: list[dict[str, Any]]) -> float:
    """Return the cost of each further parameter, from the cases with the fewest and the most."""
    fewest, most = cases[0], cases[-1]
    rise = most["p50_ns"] - fewest["p50_ns"]
    return round(rise / (most["parameters"] - fewest["parameters"]) / 1e3, 4)


def lines(row: dict[str, Any]) -> Iterator[str]:
    """Format the row as text."""
    yield row["name"]
    yield f"  {row['backend']}, parameters of 16 elements"
    yield (
        f"  {'parameters':>10}  {'gradients':<14}{'host, median':>14}{'p20 .. p80':>22}"
        f"{'allowed':>10}{'':>18}{'kernel':>10}{'torch fused, all':>18}"
    )
    for case in row["cases"]:
        yield (
            f"  {case['parameters']:>10}  {case['gradients']:<14}{duration(case['p50_ns']):>14}"
            f"{duration(case['p20_ns']) + ' .. ' + duration(case['p80_ns']):>22}"
            f"{case['allowed_us']:>7.0f} us{verdict(case['met']):>18}"
            f"{duration(case['kernel_p50_ns']):>10}"
            f"{duration(case['torch_fused_whole_step']['p50_ns']):>18}"
        )
    slopes = ", ".join(
        f"gradients {key} {value:.3f} us (at most {PER_PARAMETER_US[key]})"
        for key, value in row["per_parameter_us"].items()
    )
    yield f"  each further parameter: {slopes}"
    busiest = max(row["cases"], key=lambda case: case["load"]["other_processes_cpus"])
    yield f"  at the worst, {load_summary(busiest['load'])}"
