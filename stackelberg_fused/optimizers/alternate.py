"""The alternating step of a model that cannot be cut: `mode="alternating"`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..groups.option_types import Role

if TYPE_CHECKING:
    from .stepping import Stepping


def alternate(optimizer: Stepping, closure: Callable[[], Any] | None, zero_grad: bool) -> Any:
    """Move the head by its gradient, then the body by its gradient at the new head; returns the loss there.

    The order is that of the paper's two-time-scale method as docs/algorithm.md infers it.

    Raises:
        ValueError: no closure.
        ValueError, TypeError, RuntimeError: as `step`, for gradients of either player, before the head moves. What the
            closure raises at the new head, or gradients that do not fit there alone, come after it has moved.
        RuntimeError: gradients were accumulated before, which would be cleared.
    """
    if closure is None:
        raise ValueError(
            "mode='alternating': step() needs a closure, which is called once for each player; without one, take "
            "step(role='head'), compute the loss again, and step(role='body')"
        )
    order: tuple[Role, ...] = ("head", "body")
    for role in order:
        if all(group["role"] != role for group in optimizer.param_groups):
            raise ValueError(f"mode='alternating': no param group has role {role!r}")
    optimizer._shared.accumulated.refuse(optimizer.param_groups)
    loss = None
    with optimizer._shared.accumulated.stepping(optimizer.param_groups):
        for role in order:
            optimizer.zero_grad()
            # autocast may hold on to what it made of a head that has moved since
            torch.clear_autocast_cache()
            # the body's gradients are at the old head and go unused, but what is wrong with them would be so later too
            is_first = role == "head"
            with optimizer._releasing(role):
                loss = optimizer._step(closure, role=role, zero_grad=zero_grad, checks_all=is_first)
        if zero_grad:
            optimizer.zero_grad()
    return loss
