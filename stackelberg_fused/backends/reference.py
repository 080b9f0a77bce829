"""The reference backend: `stackelberg_fused.numerics.update_rule` applied parameter by parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..groups.constraints import (
    L2Ball,
    Simplex,
    box_bounds,
    joint_set,
)
from ..groups.param_groups import ROLES
from ..groups.rules import as_integer, sums_gradients
from ..groups.schemes import MOMENTS, state_names
from ..layout.slot import Kind, Slot
from ..layout.statistics import ClipLimits
from ..layout.table import STATE_FIELD
from ..memory.arena import in_memory_order
from ..memory.sharding import local_tensor
from ..numerics import turns, update_rule
from ..numerics.exact_sum import NANS, carried, rounded, sum_of_squares
from ..numerics.projection import ball_factor, project_simplex, toward_zero
from ..numerics.random_bits import random_bits
from .base import Backend, BackendStatus, Launch
from .reference_storage import (
    read_moment,
    read_weight,
    write_moment,
    write_weight,
)


class ReferenceBackend(Backend):
    """Pure PyTorch; any device, any floating dtype."""

    name = "reference"
    reads_memory = False

    @classmethod
    def status(cls) -> BackendStatus:
        return BackendStatus(cls.name, True)

    def refusal(self, kind: Kind) -> str:
        return ""

    def statistics(self, launch: Launch, limits: ClipLimits) -> int:
        digits = launch.needed_statistics.digits.zero_()
        searches = launch.scaling is not None and launch.scaling.sought is not None
        for i in launch.span.indices:
            of_player = digits[ROLES.index(launch.table.slots[i].role)]
            grad = _moving_gradient(launch, i)
            if grad is not None:
                of_player += sum_of_squares(grad)
            elif searches:
                of_player[NANS] += _waiting_nans(launch, i)
        return self.conclude(launch, limits)

    def update(self, launch: Launch) -> int:
        table = launch.table
        for i in launch.span.indices:
            slot, grad = table.slots[i], _moving_gradient(launch, i)
            group = table.groups[slot.group]
            entry = launch.state.get(slot.param) or {}  # asking by key would make one
            state = {name: local_tensor(value) for name, value in entry.items()}
            with torch.set_grad_enabled(bool(group.get("differentiable"))):
                if grad is not None:
                    if launch.statistics is not None:
                        grad = grad * launch.statistics.factors[ROLES.index(slot.role)]
                    _update(launch, i, grad, state, group)
                if "grad_sum" in state and sums_gradients(group):
                    _keep_sum(launch, i, state["grad_sum"])
                if launch.zero_grads and slot.param.grad is not None:
                    slot.param.grad.zero_()
        if launch.joint_sets is not None:
            _report(launch)
        return 0

    @torch.no_grad()
    def project(self, launch: Launch) -> int:
        table, joint_sets = launch.table, launch.needed_joint_sets
        for members in _members_of_sets(launch).values():
            group = table.groups[table.slots[members[0]].group]
            constraint = joint_set(group)
            if isinstance(constraint, L2Ball):
                factor = float(joint_sets.factors[table.records["set"][members[0]] - 1])
                if factor != 1.0:
                    for i in members:
                        local = table.slots[i].local
                        local.copy_(toward_zero(local.double() * factor, local.dtype))
            for i in members:
                local = table.slots[i].local
                if not joint_sets.moved[i]:
                    continue
                if isinstance(constraint, Simplex):
                    sums = constraint.smallest(local.dtype), constraint.largest
                    local.copy_(project_simplex(local, constraint.total, *sums))
                if group["ema_decay"] is not None:
                    ema = local_tensor(launch.state[table.slots[i].param]["ema"])
                    update_rule.ema_update(local.to(ema.dtype), ema, group)
        return 0


def _members_of_sets(launch: Launch) -> dict[int, list[int]]:
    """The slots of each joint set that a launch may move, by the index of the set."""
    span, sets = launch.span, launch.table.records["set"]
    members: dict[int, list[int]] = defaultdict(list)
    for i in span.indices:
        if sets[i]:
            members[int(sets[i]) - 1].append(i)
    return members


@torch.no_grad()
def _report(launch: Launch) -> None:
    """Write what projecting needs to know: which slots moved, and of balls the sums and factors."""
    joint_sets, moves, slots = launch.needed_joint_sets, launch.moves, launch.table.slots
    assert moves is not None
    for index, members in _members_of_sets(launch).items():
        moved = [bool(moves[i]) and slots[i].local.numel() > 0 for i in members]
        joint_sets.moved[members] = torch.tensor(
            moved, dtype=torch.int32, device=joint_sets.moved.device
        )
        ball = joint_set(launch.table.groups[slots[members[0]].group])
        if isinstance(ball, L2Ball):
            squares = torch.stack([sum_of_squares(slots[i].local) for i in members]).sum(0)
            digits = joint_sets.digits[index].copy_(carried(squares))
            dtype = slots[members[0]].local.dtype
            factor = ball_factor(rounded(digits), ball.radius, ball.largest, dtype)
            joint_sets.factors[index] = factor if any(moved) else 1.0


def _update(
    launch: Launch, i: int, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """Update one parameter by its rule, on what is stored or on what that stands for."""
    slot = launch.table.slots[i]
    if slot.scheme.is_direct:
        _apply(launch, i, slot.local, grad, state, group)
        return
    scheme, local = slot.scheme, slot.local.detach()
    param = in_memory_order(local if slot.dense else local.resolve_neg().contiguous())
    stored = {
        name: in_memory_order(t)
        for name, t in state.items()
        if name in STATE_FIELD and not _is_scale(name)
    }
    stored |= {name: local_tensor(t).reshape(-1) for name, t in state.items() if _is_scale(name)}
    moments = [name for name in state_names(group) if name in MOMENTS]
    row = slot.block_row
    wide = {**stored, **{name: read_moment(scheme, name, stored, row) for name in moments}}
    weight = read_weight(scheme, param, stored)
    _apply(launch, i, weight, _in_memory_order(grad, slot), wide, group)
    step = int(launch.table.step_counts[i]) + 1
    random = random_bits(slot.key, step, len(param), param.device, slot.region)
    write_weight(scheme, weight, param, stored, random)
    for name in moments:
        write_moment(scheme, name, wide[name], stored, random, row)
    if not slot.dense:
        local.copy_(param.view(local.shape))


def _is_scale(name: str) -> bool:
    return name.endswith("_scale")


def _apply(
    launch: Launch,
    i: int,
    param: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    group: dict[str, Any],
) -> None:
    """The rule, the box and the average, on tensors as they are."""
    table = launch.table
    if group["rule"] == "sgd":
        fresh = not table.momentum_ready[i]
        update_rule.sgd_update(param, grad, state, group, first_momentum=fresh)
    else:
        step = float(table.step_counts[i]) + 1.0
        counted = torch.tensor(step) if group.get("differentiable") else step
        update_rule.adam_update(param, grad, state, group, counted)
    update_rule.project(param, box_bounds(group, table.slots[i].local.dtype))
    if group["ema_decay"] is not None and joint_set(group) is None:
        update_rule.ema_update(param, state["ema"], group)


def _unscaled(launch: Launch, i: int) -> Tensor | None:
    grad, scheme = launch.gradient(i), launch.table.slots[i].scheme
    if grad is not None and grad.dtype is not scheme.wide:
        grad = grad.to(scheme.wide)
    if grad is None or launch.scaling is None or launch.scaling.grad_scale is None:
        return grad
    return grad * (1 / launch.scaling.grad_scale.view(()))


def _turn(launch: Launch, i: int) -> tuple[bool, bool]:
    """Tell whether a slot waits for its group's turn, and whether earlier gradients of it were summed up."""
    table = launch.table
    waited = table.waited_counts[i]
    update_every = as_integer(table.groups[table.slots[i].group]["update_every"])
    return bool(turns.waits(waited, update_every)), bool(turns.has_sum(waited))


def _moving_gradient(launch: Launch, i: int) -> Tensor | None:
    """The gradient by which a slot moves in this step, before clipping; None: it stays where it is."""
    slot, grad = launch.table.slots[i], _unscaled(launch, i)
    group = launch.table.groups[slot.group]
    waits, has_sum = _turn(launch, i)
    if waits:
        return None
    if not sums_gradients(group) or (grad is None and not has_sum):
        return grad
    grad_sum = local_tensor(launch.state[slot.param]["grad_sum"])
    return update_rule.mean_gradient(grad_sum, grad, group)


@torch.no_grad()
def _waiting_nans(launch: Launch, i: int) -> Tensor | int:
    """How many elements of a gradient that waits are NaN once multiplied by 0, as the kernels do: those not finite."""
    grad = _unscaled(launch, i)
    return 0 if grad is None else (~grad.isfinite()).sum()


def _keep_sum(launch: Launch, i: int, grad_sum: Tensor) -> None:
    """Add a gradient that waits to the sum, which begins anew when it has moved its parameter."""
    grad = _unscaled(launch, i)
    if not _turn(launch, i)[0]:
        grad_sum.zero_()
    elif grad is not None:
        grad_sum.add_(grad)


def _in_memory_order(grad: Tensor, slot: Slot) -> Tensor:
    """The elements of a gradient in the order in which the native kernels find them: that of the parameter's memory."""
    dims: Sequence[int] = range(grad.dim())
    if slot.dense:
        dims = sorted(dims, key=slot.local.stride().__getitem__, reverse=True)
    return grad.permute(*dims).reshape(-1) if grad.dim() else grad.reshape(1)
