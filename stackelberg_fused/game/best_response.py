"""The follower's best response w* to fixed features, with a bound on the distance of f to its minimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.interrupts import HeldSignals
from ..groups.option_types import LossLike
from .follower_objective import FollowerObjective, check_ridge, linear_head, loss_name

SUFFICIENT_DECREASE = 1e-4  # c1 of the line search (Nocedal & Wright 2006, equation 3.4)


@dataclass(frozen=True)
class BestResponse:
    """The best response w*: the minimiser over w of f(theta, w) = loss + ridge / 2 * |w|^2 at fixed features.

    Attributes:
        weight: float64 [outputs, inputs].
        bias: float64 [outputs], or None for a head without a bias.
        value: f(theta, w) at this response; Phi(theta) <= value <= Phi(theta) + gap.
        gap: bound on f - Phi: |grad_w f|^2 / (2 ridge), by strong convexity; infinite without a ridge.
        grad_norm: |grad_w f| at this response.
        iterations: the number of Newton steps; 0 for a closed-form solution.
    """

    weight: Tensor
    bias: Tensor | None
    value: float
    gap: float
    grad_norm: float
    iterations: int

    @property
    def matrix(self) -> Tensor:
        """Weight and bias as the matrix W of `FollowerObjective`, float64 [inputs + 1, outputs]."""
        parts = [self.weight.t()] + ([] if self.bias is None else [self.bias.view(1, -1)])
        return torch.cat(parts)

    @torch.no_grad()
    def assign(self, head: nn.Module) -> None:
        """Write the response into the parameters of a head, rounded to their dtype.

        Args:
            head: an `nn.Linear` of the same shape.
        """
        linear = linear_head(head)
        with HeldSignals():  # an interrupt comes before or after
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
    """Minimise f(theta, w) = loss(head(features), targets) + ridge / 2 * |w|^2 over all w, in float64.

    Squared error has a closed-form solution: Cholesky factorisation with a ridge, the least-squares solution of
    smallest norm without one. Cross entropy is minimised by Newton's method with conjugate gradients (Nocedal & Wright
    2006, algorithm 7.1), starting from the current head. The head is not modified, and constraint sets are ignored.

    Args:
        head: an `nn.Linear`.
        features: floating point [..., inputs].
        targets: [..., outputs], or classes [...] for cross entropy.
        loss: "mse" or "cross_entropy", or torch's function or module of these with default options. Torch's
            cross_entropy has the classes in dimension 1, so it needs features of shape [n, inputs].
        ridge: >= 0, and > 0 for cross entropy, which has no minimiser for separable features without a ridge.
        tolerance: for cross entropy: the largest accepted `gap`.
        max_iterations: the largest number of Newton steps.

    Raises:
        ValueError, TypeError: an argument does not fit.
        RuntimeError: Newton's method did not reach the tolerance.

    Example:
        >>> head, features, targets = nn.Linear(8, 1), torch.randn(16, 8), torch.randn(16, 1)
        >>> found = sf.best_response(head, features, targets, ridge=0.1)
        >>> found.grad_norm < 1e-9
        True
        >>> found.assign(head)
    """
    name, linear = loss_name(loss), linear_head(head)
    ridge = check_ridge(ridge, "the best response of cross entropy" if name != "mse" else "")
    objective = FollowerObjective.of(loss, linear, features.detach(), targets, ridge)
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


def _least_squares(objective: FollowerObjective) -> Tensor:
    """Return the W that minimises squared error."""
    rows, targets = objective.rows, objective.targets
    if not objective.ridge:
        # the driver for rank-deficient rows exists only in LAPACK, on the CPU
        solution = torch.linalg.lstsq(rows.cpu(), targets.cpu(), driver="gelsd").solution
        return solution.to(rows)
    scale = 2.0 / targets.numel()
    normal = scale * (rows.t() @ rows)
    normal.diagonal().add_(objective.ridge)
    factor, failed = torch.linalg.cholesky_ex(normal)
    if not int(failed):
        return torch.cholesky_solve(scale * (rows.t() @ targets), factor)
    # rounding swallowed the ridge in the normal equations: solve the same problem without squaring the features
    size = rows.shape[1]
    ridge_rows = math.sqrt(objective.ridge / scale) * torch.eye(size, dtype=rows.dtype)
    ridge_targets = torch.zeros(size, targets.shape[1], dtype=rows.dtype)
    stacked_rows = torch.cat([rows.cpu(), ridge_rows])
    stacked_targets = torch.cat([targets.cpu(), ridge_targets])
    return torch.linalg.lstsq(stacked_rows, stacked_targets, driver="gelsd").solution.to(rows)


def _newton(
    objective: FollowerObjective, w: Tensor, tolerance: float, max_iterations: int
) -> tuple[Tensor, int]:
    """Minimise the objective from `w`; return W and the number of steps."""
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
            if new_value <= value + SUFFICIENT_DECREASE * length * slope:
                break
            # near the minimum values differ only by rounding: accept a smaller gradient instead
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


def _newton_direction(objective: FollowerObjective, w: Tensor, gradient: Tensor) -> Tensor:
    """Solve H d = -g by conjugate gradients, to a tolerance that shrinks with |g|: superlinear convergence."""
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
