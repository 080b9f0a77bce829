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
from ..numerics.exact_sum import carried, rounded, sum_of_squares
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
        table = launch.table
        digits = torch.zeros_like(launch.needed_statistics.digits)
        for i in launch.span.indices:
            grad = _moving_gradient(launch, i)
            if grad is not None:
                digits[ROLES.index(table.slots[i].role)] += sum_of_squares(grad)
        launch.needed_statistics.conclude_digits(digits, limits)
        if launch.scaling is not None and launch.scaling.sought is not None:
            _look_for_infinities(launch, launch.scaling.sought)
        return 0

    def step(self, launch: Launch) -> int:
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
            self._project(launch)
        return 0

    @torch.no_grad()
    def _project(self, launch: Launch) -> None:
        table, span, moves = launch.table, launch.span, launch.moves
        assert moves is not None
        joint_sets = launch.needed_joint_sets
        members: dict[int, list[int]] = defaultdict(list)
        for i in range(span.first_slot, span.last_slot):
            if joint_sets.slots[i]:
                members[table.slots[i].group].append(i)
        for index, indices in members.items():
            group = table.groups[index]
            moving = [i for i in indices if moves[i] and table.slots[i].local.numel()]
            constraint = joint_set(group)
            if isinstance(constraint, L2Ball) and moving:
                _project_onto_ball(launch, indices, constraint)
            for i in moving:
                local = table.slots[i].local
                if isinstance(constraint, Simplex):
                    sums = constraint.smallest(local.dtype), constraint.largest
                    local.copy_(project_simplex(local, constraint.total, *sums))
                if group["ema_decay"] is not None:
                    ema = local_tensor(launch.state[table.slots[i].param]["ema"])
                    update_rule.ema_update(local.to(ema.dtype), ema, group)


@torch.no_grad()
def _look_for_infinities(launch: Launch, found_inf: Tensor) -> None:
    """Write 1 to `found_inf` if a gradient is not finite once it is unscaled, also one that waits."""
    for i in range(launch.span.first_slot, launch.span.last_slot):
        for grad in (_moving_gradient(launch, i), _unscaled(launch, i)):
            if grad is not None:
                found_inf.clamp_(min=1 - grad.isfinite().all().to(found_inf))


def _project_onto_ball(launch: Launch, members: list[int], ball: L2Ball) -> None:
    """Scale the parameters of a group into its ball."""
    slots = [launch.table.slots[i] for i in members]
    digits = launch.needed_joint_sets.digits[launch.table.records["set"][members[0]] - 1]
    digits.copy_(carried(torch.stack([sum_of_squares(slot.local) for slot in slots]).sum(0)))
    dtype = slots[0].local.dtype
    factor = ball_factor(rounded(digits), ball.radius, ball.largest, dtype)
    if factor == 1.0:
        return
    for slot in slots:
        slot.local.copy_(toward_zero(slot.local.double() * factor, dtype))


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
    stored |= {
        name: local_tensor(t).reshape(-1) for name, t in state.items() if _is_scale(name)
    }
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
