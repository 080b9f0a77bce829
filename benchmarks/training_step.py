"""Contestants of the training-step rows: the update with the work that training scripts do around it.

Both sides do what a user would write, each with its own gradient scaler where the step has one, and set gradients
to None at the end, as `zero_grad()` does: each step gets new ones. Torch's side uses its fastest tools: clipping by
foreach, fused AdamW, and the foreach update of ``swa_utils`` without the bookkeeping of ``AveragedModel``. Its
flattened variant has to clear in place, because gradients are views there.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from .contestant import (
    Contestant,
    Groups,
    OptimizerAndStep,
    available_everywhere,
    without_roles,
)
from .ours import make_ours, ours_by_backend
from .workloads import (
    ADAM_BYTES,
    HYPERPARAMETERS,
    MAX_GRAD_NORM,
    SCALE,
    TORCH_FUSED,
    TrainingStep,
)

# torch's scaler looks for infinities as it unscales, and reads and writes each gradient
SCALER_BYTES = 8
CLEAR_BYTES = 4


def our_bytes(training_step: TrainingStep) -> int:
    """Return the bytes per parameter of our step.

    The norms read g, and find infinities. The average is read and written while p is at hand.
    """
    average = 8 if training_step.ema_decay is not None else 0
    return 4 + ADAM_BYTES + average


def torch_bytes(training_step: TrainingStep, flattened: bool) -> int:
    """Return the bytes per parameter of torch's step.

    The norms read g, clipping reads and writes it, and the average's kernel reads p again.
    """
    clip = 8
    average = 12 if training_step.ema_decay is not None else 0
    scaler = SCALER_BYTES if training_step.scaled else 0
    return scaler + 4 + clip + ADAM_BYTES + average + (CLEAR_BYTES if flattened else 0)


def _make_scaler(cls: type[torch.amp.GradScaler], device: str) -> torch.amp.GradScaler:
    # the scale never grows, since the gradients stay the same
    scaler = cls(device, init_scale=SCALE, growth_interval=2**31 - 1)
    # a scaler makes its tensors when it scales a loss
    scaler.scale(torch.ones((), device=device))
    return scaler


def _make_ours(groups: Groups, backend: str, training_step: TrainingStep) -> OptimizerAndStep:
    optimizer, _ = make_ours(
        groups,
        backend=backend,
        max_grad_norm=MAX_GRAD_NORM,
        ema_decay=training_step.ema_decay,
    )
    if not training_step.scaled:
        return optimizer, functools.partial(optimizer.step, zero_grad=True)
    import stackelberg_fused as sf

    scaler = _make_scaler(sf.GradScaler, groups[0]["params"][0].device.type)

    def step() -> None:
        scaler.step(optimizer, zero_grad=True)
        scaler.update()

    return optimizer, step


class TorchTrainingStep:
    """A training step by torch's tools. Its `state` can be compared like that of one optimizer.

    Args:
        flattened: parameters and gradients of a group are views of one tensor, and torch sees that tensor
            only: it cannot be given fewer or larger ones.
    """

    def __init__(self, training_step: TrainingStep, groups: Groups, flattened: bool) -> None:
        self._groups, self._flattened = groups, flattened
        torch_groups = [_flattened(group) for group in groups] if flattened else groups
        self._optimizer = torch.optim.AdamW(
            without_roles(torch_groups), fused=True, **HYPERPARAMETERS
        )
        self._clipped = [
            (
                [p for group in torch_groups if group["role"] == role for p in group["params"]],
                max_norm,
            )
            for role, max_norm in MAX_GRAD_NORM.items()
        ]
        self._params = [p for group in torch_groups for p in group["params"]]
        device = self._params[0].device.type
        self._scaler = _make_scaler(torch.amp.GradScaler, device) if training_step.scaled else None
        self._averages: list[torch.Tensor] = []
        if training_step.ema_decay is not None:
            self._averages = [p.detach().clone() for p in self._params]
            self._average = torch.optim.swa_utils.get_ema_multi_avg_fn(training_step.ema_decay)

    def step(self) -> None:
        """Unscale, clip each role, update, average, clear."""
        optimizer, scaler = self._optimizer, self._scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        for params, max_norm in self._clipped:
            torch.nn.utils.clip_grad_norm_(params, max_norm, foreach=True)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if self._averages:
            self._average(self._averages, self._params, 0)
        optimizer.zero_grad(set_to_none=not self._flattened)

    @property
    def state(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        """Moments and average, if there is one, of each of the row's parameters."""
        entries = [dict(self._optimizer.state[p]) for p in self._params]
        for entry, average in zip(entries, self._averages, strict=False):
            entry["ema"] = average
        params = [p for group in self._groups for p in group["params"]]
        if len(entries) == len(params):
            return dict(zip(params, entries, strict=True))
        # one entry per flattened group
        state: dict[torch.Tensor, dict[str, torch.Tensor]] = {p: {} for p in params}
        for group, entry in zip(self._groups, entries, strict=True):
            for name in entry.keys() - {"step"}:
                for p, part in zip(group["params"], _split(entry[name], group), strict=True):
                    state[p][name] = part
        return state


def _split(flat: torch.Tensor, group: dict[str, Any]) -> list[torch.Tensor]:
    parts = flat.split([p.numel() for p in group["params"]])
    return [part.view_as(p) for part, p in zip(parts, group["params"], strict=True)]


def _flattened(group: dict[str, Any]) -> dict[str, Any]:
    """Make the group's parameters and gradients views of one parameter; return the group of that one."""
    flat = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in group["params"]]))
    flat.grad = torch.zeros_like(flat)
    views = zip(_split(flat.detach(), group), _split(flat.grad, group), strict=True)
    for p, (value, grad) in zip(group["params"], list(views), strict=True):
        p.data, p.grad = value, grad
    return group | {"params": [flat]}


def _make_torch(
    groups: Groups, training_step: TrainingStep, flattened: bool
) -> tuple[TorchTrainingStep, Any]:
    tools = TorchTrainingStep(training_step, groups, flattened)
    return tools, tools.step


def training_step_contestants(training_step: TrainingStep) -> list[Contestant]:
    """Return ours on each backend, and torch over the parameters as they are and over flattened ones."""
    ours = ours_by_backend(
        functools.partial(_make_ours, training_step=training_step), our_bytes(training_step)
    )
    theirs = [
        Contestant(
            name,
            "torch",
            functools.partial(_make_torch, training_step=training_step, flattened=flattened),
            available_everywhere,
            bytes_per_parameter=torch_bytes(training_step, flattened),
        )
        for name, flattened in ((TORCH_FUSED, False), (f"{TORCH_FUSED}, flattened", True))
    ]
    return [*ours, *theirs]
