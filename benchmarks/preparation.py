"""Who takes part in a row: built, checked against the reference and warmed up before anything is timed."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from . import machine
from .compile_timeout import TimeBoxExpired, time_box
from .contestant import Contestant, Step
from .low_precision_parity import narrow_error
from .parity import Expected, parity_error
from .stored_bytes import stored_bytes
from .timing import Action
from .workloads import SCALE, Workload

Tensors = list[torch.Tensor]
TIMED, SKIPPED, RED, BROKEN = "timed", "skipped", "parity red", "broke down"
# a compiled step may specialise again on its second call
WARM_UP_STEPS = 3
SEED = 1


@dataclass
class Settings:
    """How a run measures.

    `seconds` bounds the timed part of one row, `compile_seconds` one contestant's compilation, and
    `patience` the search for a moment in which others leave the machine alone.
    """

    device: str = "cpu"
    rounds: int = 60
    seconds: float = 20.0
    compile: bool = True
    compile_seconds: float = 60.0
    patience: float = 0.0


def first_line(error: Exception) -> str:
    """The error's kind and the first line of its message."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


@dataclass
class Entry:
    """A contestant's optimizer over its own copy of the parameters.

    `refills`: the gradients are its own too, which its step clears and `set_gradients` fills again.
    """

    params: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: Step
    refills: bool = False

    @classmethod
    def build(cls, contestant: Contestant, workload: Workload, start: Tensors) -> Entry:
        params = [torch.nn.Parameter(t.to(contestant.dtype, copy=True)) for t in start]
        refills = workload.around is not None
        if refills:
            for p in params:
                p.grad = torch.zeros_like(p)
        return cls(params, *contestant.make(workload.param_groups(params)), refills)

    def set_gradients(self, grads: Tensors) -> None:
        if self.refills:
            torch._foreach_copy_([p.grad for p in self.params], grads)
            return
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def action(self, device: str, *gradients: Tensors) -> Action:
        """Its step; with several sets of gradients, after every parameter has got the next one's.

        A gradient is then another object at another address each time, as after a backward pass.
        Where gradients stay and the step clears them, they are filled before each step: steps of
        zeros would move states towards numbers so small that arithmetic with them is slow.
        """
        self.set_gradients(gradients[0])
        action = Action(self.step, device)
        if self.refills:
            held = [p.grad for p in self.params]
            action.before = lambda: torch._foreach_copy_(held, gradients[0])
        elif len(gradients) > 1:
            sets = itertools.cycle(gradients)
            action.before = lambda: self.set_gradients(next(sets))
        return action


def gradient_sets(
    workload: Workload, device: str, seed: int, dtype: torch.dtype = torch.float32
) -> list[Tensors]:
    """One set of gradients, or two of the same values if the row wants new ones each step."""
    scaled = workload.around is not None and workload.around.scaled
    grads = workload.tensors(device, seed + 1, 0.1 * (SCALE if scaled else 1.0))
    grads = [g.to(dtype) for g in grads]
    return [grads, [g.clone() for g in grads]] if workload.new_gradients else [grads]


def refused(contestant: Contestant, workload: Workload, settings: Settings) -> str:
    """Why `contestant` cannot take part, or nothing."""
    ok, reason = contestant.available(settings.device)
    if not ok:
        return reason
    if contestant.compiled and not settings.compile:
        return "--no-compile or --quick"
    if contestant.max_numel is not None and workload.numel > contestant.max_numel:
        return f"only up to {contestant.max_numel:,} parameters"
    # p, m, v of its own, and as much again for temporaries; gradients and an average
    each = 24 if workload.around is None else 32
    need, have = each * workload.numel, machine.available_bytes(settings.device)
    if need > 0.9 * have:
        return f"needs {need / 2**30:.1f} GiB, {have / 2**30:.1f} GiB available"
    return ""


def enter(
    contestant: Contestant,
    workload: Workload,
    settings: Settings,
    start: Tensors,
    grads: Tensors,
    expected: Expected,
) -> tuple[Entry | None, dict[str, Any]]:
    """Build, check and warm up; (None, what went wrong) if any of it fails.

    `grads` are of the contestant's dtype.
    """
    record: dict[str, Any] = {
        "name": contestant.name,
        "family": contestant.family,
        "bytes_per_parameter": contestant.bytes_per_parameter,
        "status": SKIPPED,
        "reason": refused(contestant, workload, settings),
    }
    if record["reason"]:
        return None, record
    box = time_box(settings.compile_seconds) if contestant.compiled else contextlib.nullcontext()
    try:
        with box:
            entry = Entry.build(contestant, workload, start)
            entry.set_gradients(grads)
            entry.step()
            check = parity_error if workload.states is None else narrow_error
            error = check(contestant, entry.params, entry.optimizer, expected)
            if error:
                return None, record | {"status": RED, "reason": error}
            stored = stored_bytes(entry.params, entry.optimizer.state)
            record["stored_bytes_per_parameter"] = round(stored / workload.numel, 4)
            for _ in range(WARM_UP_STEPS - 1):
                entry.step()
        record["launches"] = launches(entry, settings.device)
        if entry.refills and settings.device == "cuda":
            # the scaler's and clip_grad_norm_'s too
            record["kernels"] = kernels(entry)
    except TimeBoxExpired:
        record["reason"] = f"compilation took longer than {settings.compile_seconds:g} s"
        torch._dynamo.reset()
    # whatever a peer raises, the row goes on without it
    except Exception as error:
        record["reason"] = first_line(error)
        if contestant.family == "ours":
            record["status"] = BROKEN
    else:
        return entry, record | {"status": TIMED}
    return None, record


def launches(entry: Entry, device: str) -> int | None:
    """Kernel launches of one step: our own count, or a GPU profiler's; None where nobody counts."""
    before = getattr(entry.optimizer, "launches", None)
    if before is not None:
        entry.step()
        return entry.optimizer.launches - before
    return kernels(entry) if device == "cuda" else None


def kernels(entry: Entry) -> int | None:
    """Kernels that a GPU's profiler sees in one step; None where it may not look."""
    from torch.profiler import ProfilerActivity, profile

    # a machine may forbid profiling; the contestant is timed all the same
    with contextlib.suppress(Exception):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            entry.step()
            torch.cuda.synchronize()
        on_device = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not e.name.startswith(("Memcpy", "Memset")) for e in on_device)
    return None
