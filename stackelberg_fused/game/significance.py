"""Significance of the differences between ratios: sign-flip tests of losses that are paired by seed."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST_EXACT = 14  # differences of which all signs are tried
DRAWS = 10_000  # of signs, for more differences


def checked_level(caller: str, level: Any) -> float:
    """Return a significance level.

    Raises:
        ValueError: it is no number between 0 and 1.
    """
    is_number = isinstance(level, (int, float, np.number)) and not isinstance(level, bool)
    if not is_number or not 0 < level < 1:
        raise ValueError(f"{caller}() needs 0 < level < 1, got {level!r}")
    return float(level)


def p_values_against_one(losses: dict[float, list[float]]) -> dict[float, float]:
    """Return the p-value of each ratio other than 1, as `RatioSearch.p_values` defines it.

    Args:
        losses: by ratio, 1 included: the loss for each seed, in one order of seeds.
    """
    uniform, p_values = losses[1.0], {}
    for ratio, values in losses.items():
        if ratio == 1:
            continue
        if not all(map(math.isfinite, values)):
            p_values[ratio] = 1.0
        elif len(values) > 1 and len(set(values)) == len(set(uniform)) == 1:
            p_values[ratio] = math.nan
        else:
            differences = [a - b for a, b in zip(values, uniform, strict=True)]
            p_values[ratio] = min(1.0, sign_flip_p_value(differences) * (len(losses) - 1))
    return p_values


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Return the probability that random signs make the sum of the differences as small as it is (Fisher 1935).

    The value is exact for up to 14 differences, and at least 2**-len(differences). For more it is
    (1 + hits) / (1 + draws) of 10 000 seeded draws: what was measured counts as one of them, so that chance falls below
    a level no more often than the level says (Phipson and Smyth 2010). An infinite difference counts as the largest
    finite magnitude.
    """
    largest = max((abs(d) for d in differences if math.isfinite(d)), default=1.0)
    clipped = np.array([min(max(d, -largest), largest) for d in differences])
    is_exact = len(clipped) <= MOST_EXACT
    if is_exact:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(clipped))))
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), (DRAWS, len(clipped)))
    sums = (signs * np.abs(clipped)).sum(1)
    hits = int((sums <= clipped.sum() + 1e-12 * np.abs(clipped).sum()).sum())
    return hits / len(sums) if is_exact else (1 + hits) / (1 + len(sums))


def least_p_value(seeds: int) -> float:
    """Return the smallest p-value that `sign_flip_p_value` can have with so many differences."""
    return 2.0**-seeds if seeds <= MOST_EXACT else 1 / (1 + DRAWS)


def recommended_ratio(
    losses: dict[float, list[float]], p_values: dict[float, float], level: float
) -> float:
    """Return the ratio of smallest median loss among 1 and the ratios with p <= level or NaN."""
    medians = {ratio: statistics.median(values) for ratio, values in losses.items()}
    candidates = [1.0, *(ratio for ratio, p in p_values.items() if math.isnan(p) or p <= level)]
    return min(candidates, key=lambda ratio: (medians[ratio], ratio))
