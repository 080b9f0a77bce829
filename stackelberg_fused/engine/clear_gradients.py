"""Clearing gradients: after the launches of a step, and in `zero_grad` for one player."""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import Any

from torch import Tensor

from ..native.tensor_abi import increment_versions
from .launch_unit import LaunchUnit, Pending, Staged


def clear_gradients(unit: LaunchUnit, pending: Pending, staged: Staged | None) -> None:
    """Clear the gradients of a span as `zero_grad` does: gathered ones to None, flat ones to zeros in their place.

    After every launch, because tables may share gradients.

    Args:
        staged: None where no launch was made.
    """
    table, span, flat = unit.table, pending.span, unit.flat
    if flat is None:
        params = unit.gradients.params[span.first_slot : span.last_slot]
        # a loop in C: at every step, over every parameter
        deque(map(setattr, params, repeat("grad"), repeat(None)), 0)
        return
    if staged is not None and staged.launch.zero_grads:
        # the launch cleared copies where it read them, and autograd knows of nothing that it did
        _zero(pending.gathered.copied)
        if unit.backend.reads_memory:
            increment_versions(flat.views_in(span))
    else:
        params = unit.gradients.params[span.first_slot : span.last_slot]
        _zero([grad for param in params if (grad := param.grad) is not None])
    if not pending.clears:
        flat.attach(table, span, keep=False)
        flat.drop_others(table, span)


def clear_as_torch(groups: list[dict[str, Any]], set_to_none: bool) -> None:
    """Clear the gradients of some groups as `torch.optim.Optimizer.zero_grad` does."""
    for param in (param for group in groups for param in group["params"]):
        grad = param.grad
        if set_to_none:
            param.grad = None
        elif grad is not None:
            grad.detach_() if grad.grad_fn is not None else grad.requires_grad_(False)
            grad.zero_()


def _zero(grads: list[Tensor]) -> None:
    for grad in grads:
        grad.detach().zero_()
