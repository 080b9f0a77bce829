"""Preparation of a contestant: build its optimizer, check the first step against the reference, warm up."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from . import machine
from .compile_timeout import CompileTimeout, compile_timeout
from .contestant import Contestant, Step
from .low_precision_parity import low_precision_error
from .parity import Expected, parity_error
from .sharded import sharded_gradients, sharded_parameters
from .stored_bytes import stored_bytes
from .timing import Action
from .workloads import SCALE, Workload

Tensors = list[torch.Tensor]
# the status of a contestant in a row
TIMED, SKIPPED, PARITY_FAILED, BROKEN = "timed", "skipped", "parity failed", "broken"
# a compiled step may compile once more on its second call
WARM_UP_STEPS = 3
SEED = 1


@dataclass
class MeasurementSettings:
    """The settings of a run's measurements.

    Attributes:
        device: "cpu" or "cuda".
        rounds: interleaved rounds per row, at most.
        seconds: duration of the timed part of a row, at most.
        compile: also time contestants that compile first.
        compile_seconds: limit of one contestant's compilation.
        patience: seconds to wait for a moment in which others leave the machine alone.
    """

    device: str = "cpu"
    rounds: int = 60
    seconds: float = 20.0
    compile: bool = True
    compile_seconds: float = 60.0
    patience: float = 0.0


def first_line(error: Exception) -> str:
    """Return the error's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


@dataclass
class PreparedContestant:
    """A contestant's optimizer over its own copy of the parameters.

    Attributes:
        owns_gradients: gradients lie in the contestant's own memory; its step clears them, and
            `set_gradients` fills them again.
        is_sharded: parameters are DTensors.
    """

    params: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: Step
    owns_gradients: bool = False
    is_sharded: bool = False

    @classmethod
    def build(
        cls, contestant: Contestant, workload: Workload, start: Tensors
    ) -> PreparedContestant:
        """Copy the initial parameters and build the optimizer over them."""
        is_sharded = bool(workload.mesh) and contestant.sharded
        copies = [t.to(contestant.dtype, copy=True) for t in start]
        params = (
            sharded_parameters(copies, workload.mesh)
            if is_sharded
            else [torch.nn.Parameter(t) for t in copies]
        )
        owns_gradients = workload.training_step is not None
        if owns_gradients:
            for p in params:
                p.grad = torch.zeros_like(p)
        made = contestant.make(workload.param_groups(params))
        return cls(params, *made, owns_gradients, is_sharded)

    def lay_out(self, grads: Tensors) -> Tensors:
        """Return gradients laid out as the parameters."""
        return sharded_gradients(self.params, grads) if self.is_sharded else grads

    def set_gradients(self, grads: Tensors) -> None:
        """Give each parameter its gradient: as it is, or copied into the contestant's own memory."""
        if self.owns_gradients:
            torch._foreach_copy_([p.grad for p in self.params], grads)
            return
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def action(self, device: str, *gradients: Tensors) -> Action:
        """Return the step as an action; before each call, parameters get the next set of gradients.

        With two sets, a gradient is another object at another address each time, as after a backward pass.
        A step that clears its gradients gets them again even if there is one set only: steps of zeros would
        make the states so small that arithmetic with them is slow.
        """
        laid_out = [self.lay_out(grads) for grads in gradients]
        self.set_gradients(laid_out[0])
        action = Action(self.step, device)
        if self.owns_gradients or len(laid_out) > 1:
            sets = itertools.cycle(laid_out)
            action.setup = lambda: self.set_gradients(next(sets))
        return action


def gradient_sets(
    workload: Workload, device: str, seed: int, dtype: torch.dtype = torch.float32
) -> list[Tensors]:
    """Return one set of gradients, or two of equal values if the row wants new ones each step."""
    scaled = workload.training_step is not None and workload.training_step.scaled
    grads = workload.tensors(device, seed + 1, 0.1 * (SCALE if scaled else 1.0))
    grads = [g.to(dtype) for g in grads]
    return [grads, [g.clone() for g in grads]] if workload.new_gradients else [grads]


def exclusion(contestant: Contestant, workload: Workload, settings: MeasurementSettings) -> str:
    """Return the reason why `contestant` cannot take part in a row, or ""."""
    available, reason = contestant.available(settings.device)
    if not available:
        return reason
    if contestant.compiled and not settings.compile:
        return "--no-compile or --quick"
    if contestant.max_numel is not None and workload.numel > contestant.max_numel:
        return f"only up to {contestant.max_numel:,} parameters"
    # its p, m, v and as much for temporaries; in a training step also gradients and an average
    per_parameter = 24 if workload.training_step is None else 32
    return machine.memory_shortage(per_parameter * workload.numel, settings.device)


def prepare(
    contestant: Contestant,
    workload: Workload,
    settings: MeasurementSettings,
    start: Tensors,
    grads: Tensors,
    expected: Expected,
) -> tuple[PreparedContestant | None, dict[str, Any]]:
    """Build a contestant, check its first step and warm it up.

    `grads` have the contestant's dtype. Returns the contestant, or None if it cannot be timed, and its
    record for the JSON, which gives the reason.
    """
    record: dict[str, Any] = {
        "name": contestant.name,
        "family": contestant.family,
        "bytes_per_parameter": contestant.bytes_per_parameter,
        "status": SKIPPED,
        "reason": exclusion(contestant, workload, settings),
    }
    if record["reason"]:
        return None, record
    seconds = settings.compile_seconds
    limit = compile_timeout(seconds) if contestant.compiled else contextlib.nullcontext()
    try:
        with limit:
            prepared = PreparedContestant.build(contestant, workload, start)
            prepared.set_gradients(prepared.lay_out(grads))
            prepared.step()
            check = parity_error if workload.states is None else low_precision_error
            error = check(contestant, prepared.params, prepared.optimizer, expected)
            if error:
                return None, record | {"status": PARITY_FAILED, "reason": error}
            stored = stored_bytes(prepared.params, prepared.optimizer.state)
            record["stored_bytes_per_parameter"] = round(stored / workload.numel, 4)
            for _ in range(WARM_UP_STEPS - 1):
                prepared.step()
        record["launches"] = count_launches(prepared, settings.device)
        if prepared.owns_gradients and settings.device == "cuda":
            # includes the kernels of the scaler and of clip_grad_norm_
            record["kernels"] = count_gpu_kernels(prepared)
    except CompileTimeout:
        record["reason"] = f"compilation took longer than {seconds:g} s"
        torch._dynamo.reset()
    # the row goes on without a contestant that raises
    except Exception as error:
        record["reason"] = first_line(error)
        if contestant.family == "ours":
            record["status"] = BROKEN
    else:
        return prepared, record | {"status": TIMED}
    return None, record


def count_launches(prepared: PreparedContestant, device: str) -> int | None:
    """Count the kernel launches of one step: by our own counter, or by a GPU profiler, else None."""
    before = getattr(prepared.optimizer, "launches", None)
    if before is not None:
        prepared.step()
        return prepared.optimizer.launches - before
    return count_gpu_kernels(prepared) if device == "cuda" else None


def count_gpu_kernels(prepared: PreparedContestant) -> int | None:
    """Count the kernels of one step with the GPU's profiler; None where profiling is not allowed."""
    from torch.profiler import ProfilerActivity, profile

    # a contestant that cannot be profiled is timed all the same
    with contextlib.suppress(Exception):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            prepared.step()
            torch.cuda.synchronize()
        events = [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not e.name.startswith(("Memcpy", "Memset")) for e in events)
    return None
