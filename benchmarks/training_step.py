"""Who stands in a row of the whole step: an update with everything that training scripts do around it.

Both sides do what a user would write, with a real ``torch.amp.GradScaler`` where there is one: the look
for infinities is torch's own on both, since ours leaves it to the scaler. torch's side has its fastest
tools: foreach clipping, a fused AdamW, the foreach update of ``swa_utils`` without the bookkeeping of
``AveragedModel`` around it. Gradients stay in memory, as for those who reduce them in buffers, and are
cleared: with ``set_to_none`` clearing would be free for both.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from .contestant import (
    Contestant,
    Groups,
    Step,
    anywhere,
    plain,
)
from .low_precision import narrow_contestants
from .peers import SMALL, contestants, ours_available
from .workloads import (
    ADAM_BYTES,
    HYPERPARAMETERS,
    MAX_GRAD_NORM,
    SCALE,
    TORCH_FUSED,
    Around,
    Workload,
)

# read and written in place by the scaler's look for infinities, whether it unscales or not
LOOK_BYTES = 8
CLEAR_BYTES = 4


def our_bytes(around: Around) -> int:
    """Statistics read g; the average is read and written where p is at hand: 44, and the scaler's look."""
    average = 8 if around.ema_decay is not None else 0
    return (LOOK_BYTES if around.scaled else 0) + 4 + ADAM_BYTES + average + CLEAR_BYTES


def torch_bytes(around: Around) -> int:
    """What its kernels move: the norm reads g, clipping reads and writes it, the average reads p too."""
    average = 12 if around.ema_decay is not None else 0
    return (LOOK_BYTES if around.scaled else 0) + 4 + 8 + ADAM_BYTES + average + CLEAR_BYTES


def _scaler(device: str) -> torch.amp.GradScaler:
    # a scale that stays: the gradients do
    scaler = torch.amp.GradScaler(device, init_scale=SCALE, growth_interval=2**31 - 1)
    # makes its tensors, which it does when a loss is scaled
    scaler.scale(torch.ones((), device=device))
    return scaler


def _make_ours(backend: str, around: Around, groups: Groups) -> tuple[torch.optim.Optimizer, Step]:
    import stackelberg_fused as sf

    optimizer = sf.StackelbergAdamW(
        groups,
        backend=backend,
        max_grad_norm=MAX_GRAD_NORM,
        ema_decay=around.ema_decay,
        grads="flat",
        **HYPERPARAMETERS,
    )
    if not around.scaled:
        return optimizer, functools.partial(optimizer.step, zero_grad=True)
    scaler = _scaler(groups[0]["params"][0].device.type)

    def step() -> None:
        scaler.step(optimizer, zero_grad=True)
        scaler.update()

    return optimizer, step


class TorchWhole:
    """torch's tools for a whole step, with the `state` of one optimizer to be compared.

    Args:
        flattened: parameters and gradients of a group are views of one tensor, and torch sees only
            that: the fewest and largest tensors that it can be given.
    """

    def __init__(self, around: Around, groups: Groups, flattened: bool) -> None:
        self._groups = groups
        seen = [_flattened(group) for group in groups] if flattened else groups
        self._optimizer = torch.optim.AdamW(plain(seen), fused=True, **HYPERPARAMETERS)
        self._roles = [
            (
                [p for group in seen if group["role"] == role for p in group["params"]],
                MAX_GRAD_NORM[role],
            )
            for role in MAX_GRAD_NORM
        ]
        self._params = [p for group in seen for p in group["params"]]
        self._scaler = _scaler(self._params[0].device.type) if around.scaled else None
        self._averages: list[torch.Tensor] = []
        if around.ema_decay is not None:
            self._averages = [p.detach().clone() for p in self._params]
            self._average = torch.optim.swa_utils.get_ema_multi_avg_fn(around.ema_decay)

    def step(self) -> None:
        """Unscale, clip each role, update, average, clear."""
        optimizer, scaler = self._optimizer, self._scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        for params, most in self._roles:
            torch.nn.utils.clip_grad_norm_(params, most, foreach=True)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        if self._averages:
            self._average(self._averages, self._params, 0)
        optimizer.zero_grad(set_to_none=False)

    @property
    def state(self) -> dict[torch.Tensor, dict[str, torch.Tensor]]:
        """By parameter of the row: its moments and, where one is kept, its average."""
        entries = [dict(self._optimizer.state[p]) for p in self._params]
        for entry, average in zip(entries, self._averages, strict=False):
            entry["ema"] = average
        params = [p for group in self._groups for p in group["params"]]
        if len(entries) == len(params):
            return dict(zip(params, entries, strict=True))
        found: dict[torch.Tensor, dict[str, torch.Tensor]] = {p: {} for p in params}
        for group, entry in zip(self._groups, entries, strict=True):
            for name in entry.keys() - {"step"}:
                for p, part in zip(group["params"], _split(entry[name], group), strict=True):
                    found[p][name] = part
        return found


def _split(flat: torch.Tensor, group: dict[str, Any]) -> list[torch.Tensor]:
    parts = flat.split([p.numel() for p in group["params"]])
    return [part.view_as(p) for part, p in zip(parts, group["params"], strict=True)]


def _flattened(group: dict[str, Any]) -> dict[str, Any]:
    flat = torch.nn.Parameter(torch.cat([p.detach().reshape(-1) for p in group["params"]]))
    flat.grad = torch.zeros_like(flat)
    views = zip(_split(flat.detach(), group), _split(flat.grad, group), strict=True)
    for p, (value, grad) in zip(group["params"], list(views), strict=True):
        p.data, p.grad = value, grad
    return group | {"params": [flat]}


def _make_torch(around: Around, flattened: bool, groups: Groups) -> tuple[TorchWhole, Step]:
    whole = TorchWhole(around, groups, flattened)
    return whole, whole.step


def whole_contestants(around: Around) -> list[Contestant]:
    """Ours on each backend, and torch over the parameters as they are and over flattened ones."""
    ours = [
        Contestant(
            f"ours {backend}",
            "ours",
            functools.partial(_make_ours, backend, around),
            functools.partial(ours_available, backend),
            exact=True,
            max_numel=SMALL if backend == "reference" else None,
            bytes_per_parameter=our_bytes(around),
        )
        for backend in ("cuda", "triton", "cpu", "reference")
    ]
    theirs = [
        Contestant(
            name,
            "torch",
            functools.partial(_make_torch, around, flattened),
            anywhere,
            bytes_per_parameter=torch_bytes(around),
        )
        for name, flattened in ((TORCH_FUSED, False), (f"{TORCH_FUSED}, flattened", True))
    ]
    return [*ours, *theirs]


def field_of(workload: Workload) -> list[Contestant]:
    """Who can stand in this row."""
    if workload.states is not None:
        return narrow_contestants(workload.states)
    return contestants() if workload.around is None else whole_contestants(workload.around)
