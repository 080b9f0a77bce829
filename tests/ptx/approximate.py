"""rcp.approx.ftz.f32 and rsqrt.approx.ftz.f32: any result that the ISA allows.

The ISA bounds an error and leaves the rest to the hardware. A `Unit` chooses: the nearest float32, or errors that a
test wants to see a kernel survive.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .floating import canonical, flush

Float32, Float64 = NDArray[np.float32], NDArray[np.float64]

# section 9.7.3: rcp.approx.f32 is off by at most one ulp; the relative error of rsqrt.approx.f32 is at most 2^-22.9
RECIPROCAL_ULPS = 1
RECIPROCAL_ROOT_ERROR = 2.0**-22.9


class Unit:
    """Special function units whose results are the nearest float32."""

    def reciprocal(self, exact: Float64, nearest: Float32) -> Float32:
        """The result where it is exactly `exact`; `nearest` is that rounded. Both are finite and not zero."""
        return nearest

    def reciprocal_root(self, exact: Float64, nearest: Float32) -> Float32:
        return nearest


class WorstUnit(Unit):
    """Results as far off as the ISA allows, to the side that `side` gives: +1, -1 or 0 for each element.

    Args:
        side: for so many elements.
        most: float32s away from the nearest result; 3 are farther than the ISA allows.
    """

    def __init__(self, side: Callable[[int], NDArray[np.int64]], most: int = 3) -> None:
        self._side, self._most = side, most

    def reciprocal(self, exact: Float64, nearest: Float32) -> Float32:
        side = self._side(exact.size).astype(np.int32)
        return farthest(
            exact, nearest, side, lambda x: _ulps(exact, x) <= RECIPROCAL_ULPS, self._most
        )

    def reciprocal_root(self, exact: Float64, nearest: Float32) -> Float32:
        side = self._side(exact.size).astype(np.int32)
        return farthest(
            exact,
            nearest,
            side,
            lambda x: np.abs(x - exact) <= RECIPROCAL_ROOT_ERROR * exact,
            self._most,
        )


def farthest(
    exact: Float64,
    nearest: Float32,
    side: NDArray[np.int32],
    is_allowed: Callable[[Float64], NDArray[np.bool_]],
    most: int,
) -> Float32:
    """Of the float32s on one side of the nearest, at most so many away, the last that is allowed."""
    found = nearest
    for _ in range(most):
        # bits grow with the magnitude
        further = (found.view(np.int32) + side * np.sign(exact).astype(np.int32)).view(np.float32)
        found = np.where(is_allowed(further.astype(np.float64)), further, found)
    return found


def _ulps(exact: Float64, x: Float64) -> Float64:
    """The distance from the exact result in units of its last place."""
    return np.abs(x - exact) / 2.0 ** (np.floor(np.log2(np.abs(exact))) - 23)


def reciprocal(x: Float32, unit: Unit) -> Float32:
    """rcp.approx.ftz.f32: subnormal operands and results are zeros."""
    flushed = flush(x)
    exact = 1.0 / flushed.astype(np.float64)
    return _bounded(exact, unit.reciprocal)


def reciprocal_root(x: Float32, unit: Unit) -> Float32:
    """rsqrt.approx.ftz.f32: of -0 it is -infinity."""
    flushed = flush(x).astype(np.float64)
    exact = np.where(flushed == 0, np.copysign(np.inf, flushed), 1.0 / np.sqrt(flushed))
    return _bounded(exact, unit.reciprocal_root)


def _bounded(exact: Float64, choose: Callable[[Float64, Float32], Float32]) -> Float32:
    nearest = exact.astype(np.float32)
    is_usual = np.isfinite(nearest) & (np.abs(nearest) >= np.float32(2.0**-126))
    chosen = choose(np.where(is_usual, exact, 1.0), np.where(is_usual, nearest, np.float32(1)))
    return canonical(flush(np.where(is_usual, chosen, nearest)))
