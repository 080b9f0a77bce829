"""Curvature of f and of Phi at stated points: extreme eigenvalues, condition, and curvature along the gradient.

Hessians are never formed for large models: their products with vectors come from a second backward pass, and those of
Phi from the Schur complement hess Phi = f_tt - f_tw f_ww^-1 f_wt (smooth f, f_ww > 0, w* in the interior), whose
inverse is solved for by conjugate gradients.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from .best_response import best_response
from .objective import Objective, check_ridge, linear_head

DENSE = 64  # up to so many parameters the whole spectrum costs less than its ends
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """Of one symmetric operator.

    Attributes:
        largest, smallest: eigenvalues.
        condition: largest / smallest; NaN unless all are positive beyond the error.
        along_gradient: g'Hg / g'g for the gradient g of the same function in the same variables; NaN where g = 0.
        error: bound on the distance of either end to the nearest eigenvalue, from its residual.
    """

    largest: float
    smallest: float
    condition: float
    along_gradient: float
    error: float


@dataclass(frozen=True)
class Curvature:
    """Spectra by point and function.

    Attributes:
        stale: at (theta, w), the head as it is: "joint", the Hessian of f in both players, and "body", its block f_tt.
        response: at (theta, w*), the best response: "joint", "body", and "phi", the Hessian of Phi, which is a function
            of theta alone.
    """

    stale: dict[str, Spectrum]
    response: dict[str, Spectrum]

    def table(self) -> str:
        """A line per spectrum, each with the point at which it was taken."""
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
    loss: Any = "mse",
    ridge: float = 1e-3,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 300,
    seed: int = 0,
) -> Curvature:
    """Extreme eigenvalues, condition numbers and curvature along the gradient, in float64 on copies of the modules.

    One forward pass serves both points, so that dropout is the same at both; batch norm in training mode is
    differentiated through its batch.

    Args:
        body: `features = body(inputs)`, [..., inputs of the head].
        head: an `nn.Linear`.
        inputs: a tensor or a nest of tensors; floating ones are taken in float64.
        targets, loss: as in `best_response`.
        ridge: > 0; f has ridge / 2 * |w|^2 in it.
        tolerance: of the eigenvalues, relative to the one of larger magnitude.
        max_iterations: restarts of the Lanczos method (ARPACK), at most; see `Spectrum.error`.
        seed: of its first vector.

    Raises:
        ValueError, TypeError, RuntimeError: as `best_response`; the body has no trained parameters.
    """
    ridge = check_ridge(ridge, "curvature()")
    body, linear = _copied(body).double(), copy.deepcopy(linear_head(head)).double()
    theta = [p for p in body.parameters() if p.requires_grad]
    if not theta:
        raise ValueError("the body has no trained parameters")
    inputs = pytree.tree_map(_in_float64, inputs)
    # torch's fused attention has no second derivative, the one in plain operators has
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        features = body(inputs)
        objective = Objective.of(loss, linear, features, targets, ridge)
    best = best_response(linear, features, targets, loss, ridge).matrix
    ends = _Ends(tolerance, max_iterations, seed)
    points = []
    for w in (objective.matrix(linear), best):
        point = _Point(objective, theta, w)
        spectra = {
            "joint": ends.of(point.joint, torch.cat([point.gradient, point.head_gradient])),
            "body": ends.of(point.body, point.gradient),
        }
        if w is best:
            spectra["phi"] = ends.of(point.phi, point.gradient)
        points.append(spectra)
    return Curvature(*points)


def _copied(body: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(body)
    except RuntimeError as error:  # of a tensor in the middle of a graph
        raise RuntimeError(
            f"curvature(): the body cannot be copied; does it keep an output of its own? ({error})"
        ) from error


def _in_float64(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


class _Point:
    """Products with the Hessians of f at one point (theta, w).

    Attributes:
        gradient, head_gradient: float64 [body parameters], [head parameters]: of f.
    """

    def __init__(self, objective: Objective, theta: Sequence[Tensor], w: Tensor) -> None:
        self._objective, self._w = objective.detached(), w
        self._variables = [*theta, w.clone().requires_grad_()]
        self._sizes = [v.numel() for v in self._variables]
        self._split = sum(self._sizes[:-1])
        with torch.enable_grad():
            value = objective.value(self._variables[-1])
            # kept: every product is a backward pass through this gradient
            self._gradients = torch.autograd.grad(
                value, self._variables, create_graph=True, materialize_grads=True
            )
        flat = _flat([g.detach() for g in self._gradients])
        self.gradient, self.head_gradient = flat[: self._split], flat[self._split :]

    def joint(self, vector: Tensor) -> Tensor:
        """Of f in both players: like `vector`, [body + head parameters]."""
        parts = zip(self._gradients, vector.split(self._sizes), strict=True)
        # a parameter that does nothing has a gradient without a graph
        parts = [(g, part.view_as(g)) for g, part in parts if g.requires_grad]
        found = torch.autograd.grad(
            [g for g, _ in parts],
            self._variables,
            [part for _, part in parts],
            retain_graph=True,
            materialize_grads=True,
        )
        return _flat([g.detach() for g in found])  # zeros of torch 2.8 require a gradient

    def body(self, vector: Tensor) -> Tensor:
        """The block f_tt: like `vector`, [body parameters]."""
        return self.joint(torch.cat([vector, torch.zeros_like(self.head_gradient)]))[: self._split]

    def phi(self, vector: Tensor) -> Tensor:
        """The Schur complement f_tt - f_tw f_ww^-1 f_wt: like `vector`, [body parameters]."""
        zero = torch.zeros_like(self.head_gradient)
        mixed = self.joint(torch.cat([vector, zero]))[self._split :]
        return self.joint(torch.cat([vector, -self._solve_head(mixed)]))[: self._split]

    def _solve_head(self, right: Tensor) -> Tensor:
        """f_ww^-1 times a vector."""
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


@dataclass(frozen=True)
class _Ends:
    """Both ends of a spectrum."""

    tolerance: float
    max_iterations: int
    seed: int

    def of(self, product: Product, gradient: Tensor) -> Spectrum:
        squared = float(gradient @ gradient)
        along = float(gradient @ product(gradient)) / squared if squared > 0 else math.nan
        smallest, largest, error = (
            self._dense(product, gradient)
            if len(gradient) <= DENSE
            else self._lanczos(product, gradient)
        )
        condition = largest / smallest if smallest > error else math.nan
        return Spectrum(largest, smallest, condition, along, error)

    @staticmethod
    def _dense(product: Product, like: Tensor) -> tuple[float, float, float]:
        columns = [product(column) for column in torch.eye(len(like)).to(like)]
        matrix = torch.stack(columns)
        values = torch.linalg.eigvalsh((matrix + matrix.t()) / 2)
        return float(values[0]), float(values[-1]), 0.0

    def _lanczos(self, product: Product, like: Tensor) -> tuple[float, float, float]:
        """Smallest, largest, error; all to the tolerance times the one of larger magnitude."""
        one, first = self._farthest(product, like, "LM")
        scale = abs(one)
        if scale == 0:
            return 0.0, 0.0, 0.0
        # the other end, seen from here: so that an eigenvalue near zero need not be found to its own precision
        sign = -1.0 if one > 0 else 1.0
        other, second = self._farthest(lambda v: scale * v + sign * product(v), like, "LA")
        other = sign * (other - scale)
        return min(one, other), max(one, other), max(first, second)

    def _farthest(self, product: Product, like: Tensor, which: str) -> tuple[float, float]:
        """An end of a spectrum, and the norm of its residual."""
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        size = len(like)
        start = np.random.default_rng(self.seed).standard_normal(size)

        def times(vector: np.ndarray) -> np.ndarray:
            return product(torch.from_numpy(vector.ravel()).to(like)).cpu().numpy()

        if not times(start).any():
            return 0.0, 0.0  # as f_tt at a head of zeros
        operator = LinearOperator((size, size), matvec=times, dtype=np.float64)
        options = {"tol": self.tolerance, "maxiter": self.max_iterations, "ncv": min(size, 20)}
        try:
            values, vectors = eigsh(operator, k=1, which=which, v0=start, **options)
        except ArpackNoConvergence:
            raise RuntimeError(
                f"curvature(): no eigenvalue after {self.max_iterations} restarts; raise max_iterations or tolerance"
            ) from None
        vector = vectors[:, 0]
        return float(values[0]), float(np.linalg.norm(times(vector) - values[0] * vector))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
