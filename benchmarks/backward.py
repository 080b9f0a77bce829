"""``bench --with-backward``: a backward pass, the step and the clearing of gradients, timed together.

Alone, a step that reads gradients where autograd left them and one that has them in a buffer differ
little: the buffer's price is paid in the backward pass, which has to add to it. So both are measured with
the backward pass, ours either way, and torch's fused AdamW with gradients that are set to None, which is
its fastest. The forward pass, which makes the graph anew, is outside of the clock.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch

from . import machine
from .contestant import (
    Contestant,
    Groups,
    Step,
    anywhere,
    plain,
)
from .harness import targets_of
from .models import Training
from .parity import expect, parity_error
from .peers import contestants, ours_available
from .preparation import (
    BROKEN,
    RED,
    SEED,
    TIMED,
    WARM_UP_STEPS,
    Settings,
    first_line,
)
from .timing import (
    Action,
    interleave,
    median_ratio,
    quantiles,
    rounded,
)
from .workloads import HYPERPARAMETERS, TORCH_FUSED

# the floor: nothing but the backward pass, its gradients set to None
NO_STEP = "backward alone"


def _make_ours(backend: str, flat: bool, groups: Groups) -> tuple[torch.optim.Optimizer, Step]:
    import stackelberg_fused as sf

    grads = "flat" if flat else "gather"
    optimizer = sf.StackelbergAdamW(groups, backend=backend, grads=grads, **HYPERPARAMETERS)
    if flat:
        return optimizer, functools.partial(optimizer.step, zero_grad=True)
    return optimizer, functools.partial(_step_then_clear, optimizer)


def _make_torch(groups: Groups) -> tuple[torch.optim.Optimizer, Step]:
    optimizer = torch.optim.AdamW(plain(groups), fused=True, **HYPERPARAMETERS)
    return optimizer, functools.partial(_step_then_clear, optimizer)


def _step_then_clear(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _make_nothing(groups: Groups) -> tuple[torch.optim.Optimizer, Step]:
    optimizer = torch.optim.AdamW(plain(groups), fused=True, **HYPERPARAMETERS)
    return optimizer, functools.partial(optimizer.zero_grad, set_to_none=True)


def field(device: str) -> list[Contestant]:
    """Our default backend with gathered and with flat gradients, and torch."""
    backend = next(
        b for b in ("cuda", "triton", "cpu", "reference") if ours_available(b, device)[0]
    )
    ours = [
        Contestant(
            f"ours {backend}{', flat' if flat else ''}",
            "ours",
            functools.partial(_make_ours, backend, flat),
            anywhere,
            exact=True,
        )
        for flat in (False, True)
    ]
    return [*ours, Contestant(TORCH_FUSED, "torch", _make_torch, anywhere)]


class Trainee:
    """A contestant with a model of its own; all have the same weights and the same batches."""

    def __init__(self, contestant: Contestant, training: Training, device: str) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            self._model = training.model().to(device)
        self.params = list(self._model.parameters())
        self.optimizer, self.step = contestant.make(training.param_groups(self.params))
        self._batches = itertools.cycle(training.batches(device, SEED))
        self._bf16 = torch.autocast(device, torch.bfloat16, enabled=training.bf16)
        self._loss: torch.Tensor | None = None

    def forward(self) -> None:
        """The next batch's loss."""
        inputs, classes = next(self._batches)
        with self._bf16:
            logits = self._model(inputs)
            self._loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), classes.flatten())

    def backward(self) -> None:
        """Gradients of that loss."""
        self._loss.backward()

    def timed(self) -> None:
        """What is timed."""
        self._loss.backward()
        self.step()


def _enter(
    contestant: Contestant, training: Training, device: str
) -> tuple[Trainee | None, dict[str, Any]]:
    """Build, check the first step with the gradients it got, and warm up."""
    record: dict[str, Any] = {"name": contestant.name, "family": contestant.family}
    reference = next(c for c in contestants() if c.name == "ours reference")
    try:
        trainee = Trainee(contestant, training, device)
        trainee.forward()
        trainee.backward()
        grads = [p.grad.clone() for p in trainee.params]
        start = [p.detach().clone() for p in trainee.params]
        expected = expect(reference, training, start, grads)
        trainee.step()
        error = parity_error(contestant, trainee.params, trainee.optimizer, expected)
        if any(p.grad is not None and p.grad.any() for p in trainee.params):
            error = error or "gradients are not cleared after the step"
        if error:
            return None, record | {"status": RED, "reason": error}
        before = getattr(trainee.optimizer, "launches", None)
        for _ in range(WARM_UP_STEPS):
            trainee.forward()
            trainee.timed()
        if before is not None:
            record["launches"] = (trainee.optimizer.launches - before) // WARM_UP_STEPS
    # the row goes on without it
    except Exception as error:
        return None, record | {"status": BROKEN, "reason": first_line(error)}
    return trainee, record | {"status": TIMED}


def run(training: Training, settings: Settings) -> dict[str, Any]:
    """A row like those of steps alone, without bandwidths: a backward pass moves what it likes."""
    device = settings.device
    roles = training.heads()
    row: dict[str, Any] = {
        "name": training.name,
        "device": device,
        "tensors": len(roles),
        "groups": 2,
        "gradients": "of the backward pass",
        "around": "backward pass, step and clearing of gradients; the forward pass is not",
        "entries": [],
        "apart": {},
    }
    with torch.device("meta"):
        row["parameters"] = numel = sum(p.numel() for p in training.model().parameters())
    chosen = field(device)
    # p, g, m, v of each; start, gradients and the reference's of one; and as much for activations
    need, have = 32 * numel * (len(chosen) + 1), machine.available_bytes(device)
    if need > 0.9 * have:
        return row | {"reason": f"needs {need / 2**30:.1f} GiB, {have / 2**30:.1f} GiB available"}
    actions: dict[str, Action] = {}
    for contestant in chosen:
        trainee, record = _enter(contestant, training, device)
        row["entries"].append(record)
        if trainee is not None:
            actions[contestant.name] = Action(trainee.timed, device, trainee.forward)
    floor = Trainee(Contestant(NO_STEP, "torch", _make_nothing, anywhere), training, device)
    actions[NO_STEP] = Action(floor.timed, device, floor.forward)
    samples, row["load"] = machine.quietly(
        lambda: interleave(actions, settings.rounds, settings.seconds, SEED), settings.patience
    )
    row["rounds"] = len(samples[NO_STEP])
    for entry in row["entries"]:
        if mine := samples.get(entry["name"]):
            entry |= quantiles(mine)
            if TORCH_FUSED in samples:
                entry["times_torch_fused"] = round(median_ratio(samples[TORCH_FUSED], mine), 4)
            entry["samples_ns"] = rounded(mine)
    alone = samples[NO_STEP]
    row["probes"] = {NO_STEP: quantiles(alone) | {"samples_ns": rounded(alone)}}
    if TORCH_FUSED in samples:
        # what a step that takes no time would reach
        most = round(median_ratio(samples[TORCH_FUSED], alone), 4)
        row["probes"][NO_STEP]["times_torch_fused"] = most
    row["targets"] = targets_of(row, training.targets)
    return row
