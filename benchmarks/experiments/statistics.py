"""Means with their confidence intervals, and quartiles."""

from __future__ import annotations

import math
from collections.abc import Sequence


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95% confidence interval by Student's t, infinite for one value."""
    from scipy.stats import t

    count = len(values)
    mean = sum(values) / count
    if count < 2 or not math.isfinite(mean):
        return mean, math.inf
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, float(t.ppf(0.975, count - 1)) * math.sqrt(variance / count)


def difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the differences of paired seeds, and half the width of its 95% interval."""
    return interval([a - b for a, b in zip(first, second, strict=True)])


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Interpolate linearly; a quartile is infinite if one of its two neighbours is."""
    ordered = sorted(values)

    def quantile(q: float) -> float:
        position = q * (len(ordered) - 1)
        low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
        return low if low == high else low + (position - math.floor(position)) * (high - low)

    return quantile(0.25), quantile(0.5), quantile(0.75)
