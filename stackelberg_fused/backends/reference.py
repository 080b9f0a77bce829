"""The reference backend: `stackelberg_fused.reference` applied parameter by parameter."""

from __future__ import annotations

import torch

from .. import reference
from ..sharding import local_tensor
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

    def step(self, work: Work) -> int:
        table = work.table
        for i in range(work.span.first_slot, work.span.last_slot):
            grad = work.gradient(i)
            if grad is None:
                continue
            slot = table.slots[i]
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
