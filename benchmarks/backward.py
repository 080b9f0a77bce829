"""``bench --with-backward``: a backward pass, the step and the clearing of gradients, timed together.

Timed alone, a step that reads gradients where autograd left them hardly differs from one that has them in a buffer:
the backward pass pays for the buffer, since it has to add to it. So these rows time both kinds with the backward
pass, beside torch's fused AdamW with gradients that are set to None, its fastest way. The forward pass, which makes
the graph anew, runs outside the clock.

Two more release gradients as they come: ours (``release="backward"``), and torch's recipe for that, an optimizer for
each parameter. ``peak_memory.py`` measures what that is for.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from typing import Any

import torch

from . import machine
from .contestant import Contestant, Groups, OptimizerAndStep, available_everywhere, find_contestant
from .harness import judge_targets, times_torch_fused
from .models import TrainingWorkload
from .ours import BACKENDS, make_ours, ours_available, ours_by_backend
from .parity import parity_error, reference_step
from .peers import make_torch
from .preparation import (
    BROKEN,
    PARITY_FAILED,
    SEED,
    TIMED,
    WARM_UP_STEPS,
    MeasurementSettings,
    first_line,
)
from .timing import Action, interleave, no_setup, quantiles, rounded
from .workloads import TORCH_FUSED

# the lower bound: a backward pass whose gradients are set to None, without a step
NO_STEP = "backward alone"
RECIPE = "torch fused, each alone"
# what an optimizer that releases gradients is to reach: at most so much of the time of pass and step one after the
# other; of the recipe's time, and of its share beyond the backward pass, at least this multiple
RELEASE_BOUNDS = {"of apart": 1.05, "recipe": 2.5, "recipe's share": 5.0}


def make_releasing(groups: Groups, backend: str = "auto", **options: Any) -> OptimizerAndStep:
    """Build ours, which updates parameters in the backward pass."""
    optimizer, _ = make_ours(groups, backend=backend, release="backward", **options)
    return optimizer, functools.partial(_step_then_clear, optimizer)


class EachAlone:
    """Torch's recipe: an optimizer for each parameter, stepped by a hook when its gradient is complete."""

    def __init__(self, groups: Groups, **options: Any) -> None:
        self._optimizers = {
            p: make_torch([{**group, "params": [p]}], **options)[0]
            for group in groups
            for p in group["params"]
        }
        for p in self._optimizers:
            p.register_post_accumulate_grad_hook(self._step)

    def _step(self, param: torch.Tensor) -> None:
        optimizer = self._optimizers[param]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @property
    def state(self) -> dict[torch.Tensor, Any]:
        """Of each parameter."""
        return {p: optimizer.state[p] for p, optimizer in self._optimizers.items()}


def make_each_alone(groups: Groups) -> tuple[EachAlone, Any]:
    """Build the recipe; its step is over when the backward pass is."""
    return EachAlone(groups, fused=True), no_setup


def _make_ours(groups: Groups, backend: str, flat: bool) -> OptimizerAndStep:
    optimizer, _ = make_ours(groups, backend=backend, grads="flat" if flat else "gather")
    if flat:
        return optimizer, functools.partial(optimizer.step, zero_grad=True)
    return optimizer, functools.partial(_step_then_clear, optimizer)


def _make_torch(groups: Groups) -> OptimizerAndStep:
    optimizer, _ = make_torch(groups, fused=True)
    return optimizer, functools.partial(_step_then_clear, optimizer)


def _step_then_clear(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _make_no_step(groups: Groups) -> OptimizerAndStep:
    optimizer, _ = make_torch(groups, fused=True)
    return optimizer, functools.partial(optimizer.zero_grad, set_to_none=True)


def backward_contestants(device: str) -> list[Contestant]:
    """Return our default backend, with gathered, flat and released gradients, and torch."""
    backend = next(b for b in BACKENDS if ours_available(b, device)[0])
    ours = [
        Contestant(
            f"ours {backend}{', flat' if flat else ''}",
            "ours",
            functools.partial(_make_ours, backend=backend, flat=flat),
            available_everywhere,
            exact=True,
        )
        for flat in (False, True)
    ]
    releasing = functools.partial(make_releasing, backend=backend)
    return [
        *ours,
        Contestant(f"ours {backend}, release", "ours", releasing, available_everywhere, exact=True),
        Contestant(TORCH_FUSED, "torch", _make_torch, available_everywhere),
        Contestant(RECIPE, "torch", make_each_alone, available_everywhere),
    ]


class TrainingRun:
    """A contestant with its own model; all runs have the same initial weights and the same batches."""

    def __init__(self, contestant: Contestant, workload: TrainingWorkload, device: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self._model = workload.model().to(device)
        self.params = list(self._model.parameters())
        self.optimizer, self.step = contestant.make(workload.param_groups(self.params))
        self._batches = itertools.cycle(workload.batches(device, SEED))
        self._autocast = torch.autocast(device, torch.bfloat16, enabled=workload.bf16)
        self._loss: torch.Tensor | None = None

    def forward(self) -> None:
        """Compute the loss of the next batch."""
        inputs, classes = next(self._batches)
        with self._autocast:
            logits = self._model(inputs)
            self._loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), classes.flatten())

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradients of that loss, for a backward pass that is to come."""
        return [*torch.autograd.grad(self._loss, self.params, retain_graph=True)]

    def backward_and_step(self) -> None:
        """Make the part of an iteration that is timed."""
        self._loss.backward()
        self.step()


def _prepare(
    contestant: Contestant, workload: TrainingWorkload, device: str
) -> tuple[TrainingRun | None, dict[str, Any]]:
    """Build a run, check its first step with the gradients that it got, and warm it up."""
    record: dict[str, Any] = {"name": contestant.name, "family": contestant.family}
    reference = find_contestant(ours_by_backend(), "ours reference")
    try:
        run = TrainingRun(contestant, workload, device)
        run.forward()
        start = [p.detach().clone() for p in run.params]
        expected = reference_step(reference, workload, start, run.gradients())
        run.backward_and_step()
        error = parity_error(contestant, run.params, run.optimizer, expected)
        if any(p.grad is not None and p.grad.any() for p in run.params):
            error = error or "gradients are not cleared after the step"
        if error:
            return None, record | {"status": PARITY_FAILED, "reason": error}
        before = getattr(run.optimizer, "launches", None)
        for _ in range(WARM_UP_STEPS):
            run.forward()
            run.backward_and_step()
        if before is not None:
            record["launches"] = (run.optimizer.launches - before) // WARM_UP_STEPS
    # the row goes on without a contestant that raises
    except Exception as error:
        return None, record | {"status": BROKEN, "reason": first_line(error)}
    return run, record | {"status": TIMED}


def run_row(workload: TrainingWorkload, settings: MeasurementSettings) -> dict[str, Any]:
    """Measure a row; it has no bandwidths, since the traffic of a backward pass is not known."""
    device = settings.device
    row: dict[str, Any] = {
        "name": workload.name,
        "device": device,
        "tensors": len(workload.in_head()),
        "groups": 2,
        "gradients": "of the backward pass",
        "around": "backward pass, step and clearing of gradients; the forward pass is not",
        "entries": [],
        "apart": {},
    }
    with torch.device("meta"):
        row["parameters"] = sum(p.numel() for p in workload.model().parameters())
    contestants = backward_contestants(device)
    # p, g, m, v of each; start, gradients and the reference's of one; and as much for activations
    needed = 32 * row["parameters"] * (len(contestants) + 1)
    if shortage := machine.memory_shortage(needed, device):
        return row | {"reason": shortage}
    actions: dict[str, Action] = {}
    for contestant in contestants:
        run, record = _prepare(contestant, workload, device)
        row["entries"].append(record)
        if run is not None:
            actions[contestant.name] = Action(run.backward_and_step, device, run.forward)
    no_step = Contestant(NO_STEP, "torch", _make_no_step, available_everywhere)
    run = TrainingRun(no_step, workload, device)
    actions[NO_STEP] = Action(run.backward_and_step, device, run.forward)
    samples, row["load"] = machine.measure_when_quiet(
        lambda: interleave(actions, settings.rounds, settings.seconds, SEED), settings.patience
    )
    row["rounds"] = len(samples[NO_STEP])
    # the ratio of the backward pass alone is the best that a step could reach
    summaries = {
        name: quantiles(times) | times_torch_fused(samples, name) | {"samples_ns": rounded(times)}
        for name, times in samples.items()
    }
    for entry in row["entries"]:
        entry |= summaries.get(entry["name"], {})
    row["probes"] = {NO_STEP: summaries[NO_STEP]}
    row["targets"] = judge_targets(row, workload.targets)
    row["release"] = _release_verdicts(samples, row["load"]["quiet"])
    return row


def _release_verdicts(samples: dict[str, list[float]], quiet: bool) -> list[dict[str, Any]]:
    """Compare the medians of the contestants that release gradients, beside `RELEASE_BOUNDS`."""
    median = {name: statistics.median(times) for name, times in samples.items()}
    released = next((name for name in median if name.endswith(", release")), None)
    if released is None or RECIPE not in median:
        return []
    share = {name: max(1.0, time - median[NO_STEP]) for name, time in median.items()}
    apart = released.removesuffix(", release")
    values = {
        "of apart": median[released] / median[apart],
        "recipe": median[RECIPE] / median[released],
        "recipe's share": share[RECIPE] / share[released],
    }
    verdicts = []
    for quantity, value in values.items():
        bound = RELEASE_BOUNDS[quantity]
        is_met = value <= bound if quantity == "of apart" else value >= bound
        record = {"quantity": quantity, "bound": bound, "value": round(value, 4)}
        verdicts.append(record | {"met": is_met if quiet else None})
    return verdicts
