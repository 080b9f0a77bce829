"""Means and their confidence intervals."""

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
