"""Extreme eigenvalues of a symmetric operator that is known by its products with vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DENSE = 64  # up to this size computing the whole spectrum is cheaper than the Lanczos method
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """The extreme eigenvalues of one Hessian.

    Attributes:
        largest, smallest: eigenvalues.
        condition: largest / smallest; NaN unless smallest > error.
        along_gradient: g'Hg / g'g for the gradient g of the same function in the same variables; NaN if g = 0.
        error: bound on the distance of `largest` and of `smallest` to the nearest eigenvalue, from the residuals.
    """

    largest: float
    smallest: float
    condition: float
    along_gradient: float
    error: float


@dataclass(frozen=True)
class EigenvalueSolver:
    """Computes the smallest and the largest eigenvalue, densely or by the Lanczos method.

    Attributes:
        tolerance: of the eigenvalues, relative to the one of larger magnitude.
        max_iterations: the largest number of restarts of the Lanczos method.
        seed: the seed of its first vector.
    """

    tolerance: float
    max_iterations: int
    seed: int

    def spectrum(self, product: Product, gradient: Tensor) -> Spectrum:
        """Return the spectrum of a Hessian.

        Args:
            product: multiplies the Hessian by a vector, float64 [n].
            gradient: the gradient of the same function, float64 [n].
        """
        squared_norm = float(gradient @ gradient)
        along = float(gradient @ product(gradient)) / squared_norm if squared_norm > 0 else math.nan
        smallest, largest, error = (
            self._dense(product, gradient)
            if len(gradient) <= DENSE
            else self._lanczos(product, gradient)
        )
        condition = largest / smallest if smallest > error else math.nan
        return Spectrum(largest, smallest, condition, along, error)

    @staticmethod
    def _dense(product: Product, like: Tensor) -> tuple[float, float, float]:
        """Return smallest, largest, error from the dense matrix."""
        columns = [product(column) for column in torch.eye(len(like)).to(like)]
        matrix = torch.stack(columns)
        values = torch.linalg.eigvalsh((matrix + matrix.t()) / 2)
        return float(values[0]), float(values[-1]), 0.0

    def _lanczos(self, product: Product, like: Tensor) -> tuple[float, float, float]:
        """Return smallest, largest, error; all to the tolerance times the eigenvalue of larger magnitude."""
        dominant, dominant_error = self._eigenvalue(product, like, "LM")
        scale = abs(dominant)
        if scale == 0:
            return 0.0, 0.0, 0.0
        # shift the spectrum so that the other end has the largest value: an eigenvalue near zero then needs no
        # precision relative to itself
        sign = -1.0 if dominant > 0 else 1.0
        shifted, other_error = self._eigenvalue(lambda v: scale * v + sign * product(v), like, "LA")
        other = sign * (shifted - scale)
        return min(dominant, other), max(dominant, other), max(dominant_error, other_error)

    def _eigenvalue(self, product: Product, like: Tensor, which: str) -> tuple[float, float]:
        """Return one extreme eigenvalue and the norm of its residual; `which` is ARPACK's "LM" or "LA"."""
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

        size = len(like)
        start = np.random.default_rng(self.seed).standard_normal(size)

        def matvec(vector: np.ndarray) -> np.ndarray:
            return product(torch.from_numpy(vector.ravel()).to(like)).cpu().numpy()

        if not matvec(start).any():
            return 0.0, 0.0  # the zero operator, such as f_tt at a head of zeros
        operator = LinearOperator((size, size), matvec=matvec, dtype=np.float64)
        options = {"tol": self.tolerance, "maxiter": self.max_iterations, "ncv": min(size, 20)}
        try:
            values, vectors = eigsh(operator, k=1, which=which, v0=start, **options)
        except ArpackNoConvergence:
            raise RuntimeError(
                f"curvature(): no eigenvalue after {self.max_iterations} restarts; raise max_iterations or tolerance"
            ) from None
        vector = vectors[:, 0]
        return float(values[0]), float(np.linalg.norm(matvec(vector) - values[0] * vector))
