"""Products of the Hessians of f and Phi with vectors, by a second backward pass and conjugate gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .follower_objective import FollowerObjective


class HessianProducts:
    """Products with the Hessians of f and Phi at one point (theta, w).

    Args:
        objective: f, with the graph of the features.
        theta: the body's parameters, float64.
        w: the head's parameters as the matrix W of `FollowerObjective`, float64.

    Attributes:
        body_gradient, head_gradient: grad_theta f and grad_w f, float64 [body parameters] and [head parameters].
    """

    def __init__(self, objective: FollowerObjective, theta: Sequence[Tensor], w: Tensor) -> None:
        self._objective, self._w = objective.detached(), w
        self._variables = [*theta, w.clone().requires_grad_()]
        self._sizes = [v.numel() for v in self._variables]
        self._body_size = sum(self._sizes[:-1])
        with torch.enable_grad():
            value = objective.value(self._variables[-1])
            # the graph stays: each product is a backward pass through these gradients
            self._gradients = torch.autograd.grad(
                value, self._variables, create_graph=True, materialize_grads=True
            )
        gradient = _flat([g.detach() for g in self._gradients])
        self.body_gradient, self.head_gradient = (
            gradient[: self._body_size],
            gradient[self._body_size :],
        )

    def joint(self, vector: Tensor) -> Tensor:
        """Multiply by the Hessian of f in (theta, w): [body + head parameters] to the same."""
        parts = zip(self._gradients, vector.split(self._sizes), strict=True)
        # the gradient of a parameter without influence has no graph
        pairs = [(g, part.view_as(g)) for g, part in parts if g.requires_grad]
        products = torch.autograd.grad(
            [g for g, _ in pairs],
            self._variables,
            [part for _, part in pairs],
            retain_graph=True,
            materialize_grads=True,
        )
        return _flat([p.detach() for p in products])  # zeros of torch 2.8 require a gradient

    def body(self, vector: Tensor) -> Tensor:
        """Multiply by the block f_tt: [body parameters] to the same."""
        zeros = torch.zeros_like(self.head_gradient)
        return self.joint(torch.cat([vector, zeros]))[: self._body_size]

    def phi(self, vector: Tensor) -> Tensor:
        """Multiply by the Schur complement f_tt - f_tw f_ww^-1 f_wt, hess Phi at w*: [body parameters] to the same."""
        zeros = torch.zeros_like(self.head_gradient)
        mixed = self.joint(torch.cat([vector, zeros]))[self._body_size :]
        return self.joint(torch.cat([vector, -self._solve_head(mixed)]))[: self._body_size]

    def _solve_head(self, right: Tensor) -> Tensor:
        """Return f_ww^-1 times a vector, [head parameters], by conjugate gradients."""
        from scipy.sparse.linalg import LinearOperator, cg

        def product(vector: np.ndarray) -> np.ndarray:
            direction = torch.from_numpy(vector).to(right).view_as(self._w)
            return self._objective.hessian_product(self._w, direction).cpu().numpy().ravel()

        size = len(right)
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        solution, info = cg(operator, right.cpu().numpy(), rtol=1e-10, maxiter=20 * size)
        if info:
            raise RuntimeError(
                f"curvature(): the head's Hessian could not be inverted with ridge={self._objective.ridge:g}; "
                "take a larger one"
            )
        return torch.from_numpy(solution).to(right)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
