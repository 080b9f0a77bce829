"""The follower's best response to fixed features, with a bound on what is missing, and the leader's objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..groups.option_types import LossLike
from .objective import (
    Objective,
    check_ridge,
    linear_head,
    loss_name,
)

SMALLEST_DECREASE = 1e-4


@dataclass(frozen=True)
class BestResponse:
    """w*, the minimiser of f(theta, .) = loss + ridge / 2 * |w|^2 at fixed features.

    Attributes:
        weight: float64 [outputs, inputs].
        bias: float64 [outputs], or None for a head without one.
        value: f(theta, w) at this response: Phi(theta), but for at most `gap`.
        gap: bound on f - Phi: |grad_w f|^2 / (2 ridge), by strong convexity; infinite without a ridge.
        grad_norm: |grad_w f|.
        iterations: Newton steps taken; 0 where the solution is in closed form.
    """

    weight: Tensor
    bias: Tensor | None
    value: float
    gap: float
    grad_norm: float
    iterations: int

    @property
    def matrix(self) -> Tensor:
        """float64 [inputs + 1, outputs]: weight and bias as W of `Objective`."""
        parts = [self.weight.t()] + ([] if self.bias is None else [self.bias.view(1, -1)])
        return torch.cat(parts)

    @torch.no_grad()
    def assign(self, head: nn.Module) -> None:
        """Write the response into a head, rounded to its dtype."""
        linear = linear_head(head)
        linear.weight.copy_(self.weight)
        if self.bias is not None:
            linear.bias.copy_(self.bias)


def best_response(
    head: nn.Module,
    features: Tensor,
    targets: Tensor,
    loss: LossLike = "mse",
    ridge: float = 0.0,
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 100,
) -> BestResponse:
    """Solve the follower's problem without constraints; the head itself is only read.

    Squared error is solved in closed form, by Cholesky factorisation with a ridge and by least squares (the solution
    of least norm) without. Cross entropy takes Newton's method with conjugate gradients (Nocedal & Wright 2006,
    algorithm 7.1), beginning at the head as it is. All in float64.

    Args:
        head: an `nn.Linear`.
        features: [..., inputs].
        targets: [..., outputs], or classes [...].
        loss: "mse" or "cross_entropy", or torch's own function or module of these, without options. Torch's
            cross_entropy has classes in dimension 1, so that features have to be rows, [n, inputs], for it.
        ridge: >= 0; for "cross_entropy" > 0, since separable features have no minimiser otherwise.
        tolerance: of cross entropy: the largest `gap`.
        max_iterations: Newton steps, at most.

    Raises:
        ValueError, TypeError: arguments that do not fit.
        RuntimeError: `max_iterations` did not lead to the tolerance.
    """
    name, linear = loss_name(loss), linear_head(head)
    ridge = check_ridge(ridge, "the best response of cross entropy" if name != "mse" else "")
    objective = Objective.of(loss, linear, features.detach(), targets, ridge)
    iterations = 0
    if name == "mse":
        w = _least_squares(objective)
    else:
        w, iterations = _newton(objective, objective.matrix(linear), tolerance, max_iterations)
    grad_norm = float(objective.gradient(w).norm())
    bias = None if linear.bias is None else w[-1].clone()
    weight = w[: linear.in_features].t().contiguous()
    gap = grad_norm**2 / (2 * ridge) if ridge else math.inf
    return BestResponse(weight, bias, float(objective.value(w)), gap, grad_norm, iterations)


def _least_squares(objective: Objective) -> Tensor:
    rows, targets = objective.rows, objective.targets
    if not objective.ridge:
        # the driver that knows rows that depend on each other is LAPACK's alone
        solution = torch.linalg.lstsq(rows.cpu(), targets.cpu(), driver="gelsd").solution
        return solution.to(rows)
    scale = 2.0 / targets.numel()
    normal = scale * (rows.t() @ rows)
    normal.diagonal().add_(objective.ridge)
    factor, failed = torch.linalg.cholesky_ex(normal)
    if not int(failed):
        return torch.cholesky_solve(scale * (rows.t() @ targets), factor)
    # a ridge too small to be seen beside the features: the same problem without squaring them
    size = rows.shape[1]
    below = math.sqrt(objective.ridge / scale) * torch.eye(size, dtype=rows.dtype)
    stacked = torch.cat([rows.cpu(), below])
    right = torch.cat([targets.cpu(), torch.zeros(size, targets.shape[1], dtype=rows.dtype)])
    return torch.linalg.lstsq(stacked, right, driver="gelsd").solution.to(rows)


def _newton(
    objective: Objective, w: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, int]:
    """Minimise; returns W and the steps that were taken."""
    value, gradient = float(objective.value(w)), objective.gradient(w)
    for iteration in range(max_iterations + 1):
        norm = float(gradient.norm())
        if norm**2 / (2 * objective.ridge) <= tolerance:
            return w, iteration
        if iteration == max_iterations:
            break
        direction = _newton_direction(objective, w, gradient)
        slope, length = float((gradient * direction).sum()), 1.0
        while True:
            candidate = w + length * direction
            new_value = float(objective.value(candidate))
            new_gradient = objective.gradient(candidate)
            if new_value <= value + SMALLEST_DECREASE * length * slope:
                break
            # so close to the minimum that values no longer tell, gradients still do
            if abs(new_value - value) <= 1e-14 * abs(value) and float(new_gradient.norm()) < norm:
                break
            length /= 2
            if length < 1e-12:
                raise RuntimeError(
                    f"the best response stands still at |gradient| = {norm:.3g}: with features up to "
                    f"{float(objective.rows.abs().max()):.3g} rounding does not allow tolerance={tolerance:g} with "
                    f"ridge={objective.ridge:g}; scale the features, or raise one of them"
                )
        w, value, gradient = candidate, new_value, new_gradient
    raise RuntimeError(
        f"the best response has |gradient| = {norm:.3g} after {max_iterations} Newton steps: more of them, a larger "
        "ridge or a larger tolerance?"
    )


def _newton_direction(objective: Objective, w: Tensor, gradient: Tensor) -> Tensor:
    """An approximate solution of H d = -g, the more exact the smaller the gradient: superlinear convergence."""
    from scipy.sparse.linalg import LinearOperator, cg

    def product(vector: Any) -> Any:
        direction = torch.from_numpy(vector).view(w.shape).to(w)
        return objective.hessian_product(w, direction).cpu().numpy().ravel()

    size = w.numel()
    right = -gradient.cpu().numpy().ravel()
    forcing = min(0.5, float(gradient.norm()) ** 0.5)
    operator = LinearOperator((size, size), matvec=product, dtype=right.dtype)
    solution, _ = cg(operator, right, rtol=forcing, maxiter=10 * size)
    return torch.from_numpy(solution).view(w.shape).to(w)


@contextmanager
def _buffers_kept(body: Any) -> Iterator[None]:
    """Put back what batch norm counts, and buffers that a forward pass replaces."""
    modules = body.modules() if isinstance(body, nn.Module) else ()
    buffers = [(m._buffers, name, b) for m in modules for name, b in m._buffers.items()]
    kept = [None if buffer is None else buffer.clone() for *_, buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for (holder, name, buffer), value in zip(buffers, kept, strict=True):
                holder[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)


@dataclass(frozen=True)
class StackelbergValue:
    """The leader's objective at a point.

    Attributes:
        phi: Phi(theta) = min over w of f(theta, w), but for at most `response.gap`.
        follower_gap: f(theta, w) - Phi(theta) at the head as it is.
        grad_norm: |grad Phi(theta)| = |grad_theta f(theta, w*)|, by the envelope theorem.
        response: w*.
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
    """Phi, how far the follower is from it, and how steep it is; parameters and buffers stay what they are.

    Constraint sets are not looked at: the minimum is over all w. Dropout draws from torch's global generator.

    Args:
        body: `features = body(inputs)`, [..., inputs of the head].
        head, targets, loss, ridge, **options: as in `best_response`.
        params: theta: of which the gradient is taken; the body's trained parameters where it is a module.

    Raises:
        ValueError, TypeError, RuntimeError: as `best_response`; no `params` for a body that is no module.
    """
    if params is None:
        if not isinstance(body, nn.Module):
            raise TypeError("params: needed for a body that is no module")
        params = body.parameters()
    theta = [p for p in params if p.requires_grad]
    if not theta:
        raise ValueError("the body has no trained parameters")
    with torch.enable_grad(), _buffers_kept(body):
        features = body(inputs)
        response = best_response(head, features, targets, loss, ridge, **options)
        objective = Objective.of(loss, linear_head(head), features, targets, float(ridge))
        found = torch.autograd.grad(objective.value(response.matrix), theta, allow_unused=True)
    squares = [float(g.double().square().sum()) for g in found if g is not None]
    alone = objective.detached()
    gap = float(alone.value(alone.matrix(linear_head(head)))) - response.value
    return StackelbergValue(response.value, gap, math.sqrt(sum(squares)), response)
