"""The reference backend: `stackelberg_fused.reference` applied parameter by parameter."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..groups import ROLES
from ..layout import Slot
from ..sharding import local_tensor
from ..statistics import ClipLimits
from ..summation import sum_of, tile_sums
from ..tables import TILE_ELEMENTS
from .base import Backend, BackendStatus, Work


class ReferenceBackend(Backend):
    """Pure PyTorch; any device, any floating dtype."""

    name = "reference"
    reads_memory = False

    @classmethod
    def status(cls) -> BackendStatus:
        return BackendStatus(cls.name, True)

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str:
        return ""

    def statistics(self, work: Work, limits: ClipLimits) -> int:
        table, span = work.table, work.span
        sums = table.statistics.tile_sums
        sums.zero_()
        at = span.first_tile
        for i in range(span.first_slot, span.last_slot):
            slot, grad = table.slots[i], work.gradient(i)
            tiles = -(-slot.local.numel() // TILE_ELEMENTS)
            if grad is not None:
                sums[at : at + tiles] = tile_sums(_in_memory_order(grad.detach(), slot))
            at += tiles
        split = min(max(table.first_head_tile, span.first_tile), span.last_tile)
        body, head = sums[span.first_tile : split], sums[split : span.last_tile]
        grad_scale = work.scaling and work.scaling.grad_scale
        table.statistics.conclude(torch.stack([sum_of(body), sum_of(head)]), limits, grad_scale)
        return 0

    def step(self, work: Work) -> int:
        table = work.table
        for i in range(work.span.first_slot, work.span.last_slot):
            grad = work.gradient(i)
            if grad is None:
                continue
            slot = table.slots[i]
            if work.clipped:
                grad = grad * table.statistics.factors[ROLES.index(slot.role)]
            elif work.scaling is not None and work.scaling.grad_scale is not None:
                grad = grad * (1 / work.scaling.grad_scale.view(()))
            group = table.groups[slot.group]
            state = {name: local_tensor(value) for name, value in work.state[slot.param].items()}
            with torch.set_grad_enabled(bool(group.get("differentiable"))):
                if group["rule"] == "sgd":
                    fresh = not table.momentum_ready[i]
                    reference.sgd_update(slot.local, grad, state, group, first_momentum=fresh)
                else:
                    step = float(table.step_counts[i]) + 1.0
                    counted = torch.tensor(step) if group.get("differentiable") else step
                    reference.adam_update(slot.local, grad, state, group, counted)
        return 0


def _in_memory_order(grad: Tensor, slot: Slot) -> Tensor:
    """The elements of a gradient in the order in which the native kernels find them: that of the parameter's memory."""
    dims = range(grad.dim())
    if slot.dense:
        dims = sorted(dims, key=slot.local.stride().__getitem__, reverse=True)
    return grad.permute(*dims).reshape(-1) if grad.dim() else grad.reshape(1)
