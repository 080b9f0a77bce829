"""The leader's objective Phi(theta) = min over w of f(theta, w), and the norm of its gradient, the hypergradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..groups.option_types import LossLike
from .best_response import BestResponse, best_response
from .follower_objective import FollowerObjective, linear_head


@dataclass(frozen=True)
class StackelbergValue:
    """The leader's objective at a point theta.

    Attributes:
        phi: f(theta, w*); Phi(theta) <= phi <= Phi(theta) + response.gap.
        follower_gap: f(theta, w) - phi at the current head w.
        grad_norm: |grad Phi(theta)| = |grad_theta f(theta, w*)|, by the envelope theorem.
        response: the best response w*.
    """

    phi: float
    follower_gap: float
    grad_norm: float
    response: BestResponse


def stackelberg_value(
    body: Callable[[Any], Tensor],
    head: nn.Module,
    inputs: Any,
    targets: Tensor,
    loss: LossLike = "mse",
    ridge: float = 0.0,
    *,
    params: Iterable[Tensor] | None = None,
    **options: Any,
) -> StackelbergValue:
    """Compute Phi(theta) = min over w of f(theta, w), the follower's gap f - Phi, and |grad Phi(theta)|.

    The minimum is over all w: constraint sets are ignored. Parameters, gradients and buffers stay unchanged. Dropout
    draws from torch's global generator.

    Args:
        body: `features = body(inputs)`, [..., inputs of the head].
        head, targets, loss, ridge, **options: as in `best_response`.
        inputs: the argument of `body`.
        params: theta, the tensors of the gradient; by default the trained parameters of a body that is a module.

    Raises:
        ValueError, TypeError, RuntimeError: as `best_response`. Also TypeError: `params` is missing for a body that is
            not a module; ValueError: theta has no trained parameter.

    Example:
        >>> body, head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)
        >>> inputs, targets = torch.randn(16, 4), torch.randn(16, 1)
        >>> found = sf.stackelberg_value(body, head, inputs, targets, ridge=0.1)
        >>> found.follower_gap > 0
        True
        >>> found.response.assign(head)
        >>> abs(sf.stackelberg_value(body, head, inputs, targets, ridge=0.1).follower_gap) < 1e-6
        True
    """
    if params is None:
        if not isinstance(body, nn.Module):
            raise TypeError("params: needed for a body that is no module")
        params = body.parameters()
    theta = [p for p in params if p.requires_grad]
    if not theta:
        raise ValueError("the body has no trained parameters")
    with torch.enable_grad(), _restored_buffers(body):
        features = body(inputs)
        response = best_response(head, features, targets, loss, ridge, **options)
        objective = FollowerObjective.of(loss, linear_head(head), features, targets, float(ridge))
        hypergradient = torch.autograd.grad(
            objective.value(response.matrix), theta, allow_unused=True
        )
    squares = [float(g.double().square().sum()) for g in hypergradient if g is not None]
    at_head = objective.detached()
    gap = float(at_head.value(at_head.matrix(linear_head(head)))) - response.value
    return StackelbergValue(response.value, gap, math.sqrt(sum(squares)), response)


@contextmanager
def _restored_buffers(body: Any) -> Iterator[None]:
    """Restore the body's buffers on exit: their values, and the tensors themselves if a forward pass replaced them."""
    modules = body.modules() if isinstance(body, nn.Module) else ()
    buffers = [(m._buffers, name, b) for m in modules for name, b in m._buffers.items()]
    values = [None if buffer is None else buffer.clone() for *_, buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for (owner, name, buffer), value in zip(buffers, values, strict=True):
                owner[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)
