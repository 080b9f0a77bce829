"""Rates that make no two-time-scale game."""

from __future__ import annotations

import numpy as np

from ..native.tables import LARGEST_FLOAT
from ..warning import warn_caller

ROUNDING = 1e-9  # relative: what chained schedules make of equal rates, and of a rate of zero


class RatioWatch:
    """Warns, once each, when the body becomes the faster player or a scheduler makes all rates equal."""

    def __init__(self) -> None:
        self._was_two_scale = False
        self._largest = 0.0  # rate so far
        self._warned: set[str] = set()

    def expect_equal(self) -> None:
        """Not to warn of rates that become equal: they are meant to."""
        self._warned.add("collapse")

    def look(self, body: np.ndarray, head: np.ndarray) -> None:
        """Rates of body and head groups, float64 arrays."""
        if not (len(body) and len(head)):
            return
        body, head = np.abs(body), np.abs(head)
        fastest, slowest = body.max(), head.min()
        usual = [r for r in (fastest, head.max()) if r <= LARGEST_FLOAT]  # others are infinite
        self._largest = max(self._largest, *map(float, usual), 0.0)
        if fastest <= self._largest * ROUNDING:
            return  # all that a schedule that ends at zero leaves of it, of either sign
        if fastest * (1 - ROUNDING) > slowest:
            self._warn(
                "order",
                f"the body's learning rate ({_said(fastest)}) is above the head's ({_said(slowest)}): "
                "the body is meant to be the slow part",
            )
        elif fastest == slowest == head.max() != 0.0 and self._was_two_scale:
            self._warn(
                "collapse",
                f"body and head now share one learning rate ({fastest:g}): a scheduler set every group alike "
                "(OneCycleLR does with a scalar max_lr; give it one value per group), or the state of an optimizer "
                "with a single rate was loaded",
            )
        self._was_two_scale |= bool(fastest < slowest)

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn_caller(message)


def _said(rate: float) -> str:
    """A rate as its user wrote it: infinite ones are kept as the largest number."""
    return f"{rate if rate <= LARGEST_FLOAT else np.inf:g}"
