"""Curvature of f and Phi at stated points: extreme eigenvalues, condition, and curvature along the gradient.

Both come from products of a Hessian with vectors (`hessian_products`); no Hessian of a large model is ever formed. For
smooth f, f_ww > 0 and w* in the interior, hess Phi is the Schur complement f_tt - f_tw f_ww^-1 f_wt.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..groups.option_types import LossLike
from ..torch_compat import pytree
from .best_response import best_response
from .follower_objective import FollowerObjective, check_ridge, linear_head
from .hessian_products import HessianProducts
from .spectrum import EigenvalueSolver, Spectrum


@dataclass(frozen=True)
class Curvature:
    """The spectra of the Hessians, by point and function.

    Attributes:
        stale: at (theta, w), the current head: "joint", the Hessian of f in (theta, w), and "body", its block f_tt.
        response: at (theta, w*), the best response: "joint", "body", and "phi", the Hessian of Phi in theta.
    """

    stale: dict[str, Spectrum]
    response: dict[str, Spectrum]

    def table(self) -> str:
        """Return a text table of one line per spectrum, each with its point."""
        lines = [
            f"{'point':<28}{'of':<8}{'largest':>12}{'smallest':>12}{'condition':>12}{'along g':>12}"
        ]
        points = {
            "(theta, w): head as it is": self.stale,
            "(theta, w*): best response": self.response,
        }
        for point, spectra in points.items():
            for name, s in spectra.items():
                condition = "-" if math.isnan(s.condition) else f"{s.condition:.4g}"
                lines.append(
                    f"{point:<28}{name:<8}{s.largest:>12.4g}{s.smallest:>12.4g}{condition:>12}{s.along_gradient:>12.4g}"
                )
        return "\n".join(lines)


def curvature(
    body: nn.Module,
    head: nn.Module,
    inputs: Any,
    targets: Tensor,
    loss: LossLike = "mse",
    ridge: float = 1e-3,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
    seed: int = 0,
) -> Curvature:
    """Compute extreme eigenvalues, condition numbers and curvature along the gradient of f and Phi, in float64.

    It works on float64 copies of the modules. One forward pass serves both points, so that they share the dropout mask.
    Batch norm in training mode is differentiated through its batch. hess Phi = f_tt - f_tw f_ww^-1 f_wt.

    Args:
        body: `features = body(inputs)`, [..., inputs of the head].
        head: an `nn.Linear`.
        inputs: a tensor or nested tensors; floating-point ones are converted to float64.
        targets, loss: as in `best_response`.
        ridge: > 0, the coefficient of the term ridge / 2 * |w|^2 of f.
        tolerance: of the eigenvalues, relative to the one of larger magnitude.
        max_iterations: the largest number of restarts of the Lanczos method (ARPACK); see `Spectrum.error`.
        seed: the seed of the Lanczos method's first vector.

    Raises:
        ValueError, TypeError, RuntimeError: as `best_response`. Also ValueError: the body has no trained parameter;
            RuntimeError: the body cannot be copied, or an iteration did not converge.

    Example:
        >>> body, head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)
        >>> found = sf.curvature(body, head, torch.randn(16, 4), torch.randn(16, 1))
        >>> found.stale["joint"].largest > 0
        True
        >>> sorted(found.response)
        ['body', 'joint', 'phi']
    """
    ridge = check_ridge(ridge, "curvature()")
    body, linear = _copied(body).double(), copy.deepcopy(linear_head(head)).double()
    theta = [p for p in body.parameters() if p.requires_grad]
    if not theta:
        raise ValueError("the body has no trained parameters")
    inputs = pytree.tree_map(_in_float64, inputs)
    # torch's fused attention has no second derivative; attention in plain operators does
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        features = body(inputs)
        objective = FollowerObjective.of(loss, linear, features, targets, ridge)
    best = best_response(linear, features, targets, loss, ridge).matrix
    solver = EigenvalueSolver(tolerance, max_iterations, seed)
    by_point = []
    for w in (objective.matrix(linear), best):
        hessian = HessianProducts(objective, theta, w)
        joint_gradient = torch.cat([hessian.body_gradient, hessian.head_gradient])
        spectra = {
            "joint": solver.spectrum(hessian.joint, joint_gradient),
            "body": solver.spectrum(hessian.body, hessian.body_gradient),
        }
        if w is best:
            spectra["phi"] = solver.spectrum(hessian.phi, hessian.body_gradient)
        by_point.append(spectra)
    return Curvature(*by_point)


def _copied(body: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(body)
    except RuntimeError as error:  # torch copies no tensor that has a graph
        raise RuntimeError(
            f"curvature(): the body cannot be copied; does it keep an output of its own? ({error})"
        ) from error


def _in_float64(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf
