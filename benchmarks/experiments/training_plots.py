"""The panels of the plots of digits and language: scores by body rate, and each ratio at its best rate."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from .arm import Arm
from .plot_style import COLORS


def draw_tuning(axis: Any, tuned: dict[Arm, dict[float, float]]) -> bool:
    """Plot the scores of one optimizer's arms by body rate.

    Returns True if some are above the axis; those are drawn at its edge.
    """
    ratios = list(dict.fromkeys(arm.ratio for arm in tuned))
    scores = [score for by_rate in tuned.values() for score in by_rate.values()]
    top = ceiling(scores)
    for arm, by_rate in tuned.items():
        color = COLORS[ratios.index(arm.ratio)]
        face, line = (color, "-") if arm.mode == "simultaneous" else ("white", "--")
        points = []
        for rate, score in by_rate.items():
            if score > top:  # all of these are drawn at one height
                clipped = [other for other in tuned if tuned[other].get(rate, 0.0) > top]
                x = rate * _shift(clipped, arm, 0.06)
            else:
                x = rate * _shift(ratios, arm.ratio, 0.03)
            points.append((x, min(score, top)))
            marker = "o" if score <= top else "^" if math.isfinite(score) else "x"
            size = 3.5 if marker == "o" else 5
            axis.plot(*points[-1], marker, color=color, mfc=face, ms=size, clip_on=False, zorder=3)
        for first, second in itertools.pairwise(points):
            if min(first[1], second[1]) < top:  # no line along the edge
                axis.plot(*zip(first, second, strict=True), line, color=color)
        if arm.mode == "simultaneous":
            axis.plot([], [], color=color, label=f"ratio {arm.ratio:g}")
    _scale(axis, [min(score, top) for score in scores])
    is_clipped = any(score > top for score in scores)
    if is_clipped:
        axis.set_ylim(top=top)
    axis.set(xscale="log", xlabel="body rate")
    axis.legend(fontsize=7)
    return is_clipped


def draw_best(axis: Any, stats: dict[Arm, tuple[float, float]]) -> None:
    """Plot means with their intervals by ratio; `stats` has the mean and half the width of the interval."""
    kinds = list(dict.fromkeys((arm.optimizer, arm.mode) for arm in stats))
    for color, kind in zip(COLORS, kinds, strict=False):
        arms = [arm for arm in stats if (arm.optimizer, arm.mode) == kind]
        halves = [stats[arm][1] for arm in arms]
        face, line = (color, "-") if kind[1] == "simultaneous" else ("white", "--")
        axis.errorbar(
            [arm.ratio * _shift(kinds, kind, 0.05) for arm in arms],
            [stats[arm][0] for arm in arms],
            yerr=[half if math.isfinite(half) else 0.0 for half in halves],
            fmt="o" + line,
            capsize=3,
            ms=4,
            color=color,
            mfc=face,
            label=", ".join(kind),
        )
    means = [mean for mean, _ in stats.values() if math.isfinite(mean)]
    _scale(axis, means)
    if axis.get_yscale() == "log" and axis.get_ylim()[0] <= min(means) / 4:
        # an interval reaches below zero, or nearly
        axis.set_ylim(bottom=min(means) / 4)
    ratios = list(dict.fromkeys(arm.ratio for arm in stats))
    axis.set(xscale="log", xlabel="head/body ratio")
    axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axis.set_xticks([], minor=True)
    axis.legend(fontsize=7)


def ceiling(scores: Sequence[float]) -> float:
    """Return the end of an axis of scores, chosen so that a few bad ones do not squeeze the others.

    On a logarithmic scale, the end is at most twice as far above the median of the finite scores as the best score
    is below it.
    """
    finite = [score for score in scores if math.isfinite(score)]
    if not finite:
        return 1.0
    middle = statistics.median(finite)
    return min(max(finite), middle * (middle / min(finite)) ** 2)


def _shift(items: Sequence[Any], item: Any, decades: float) -> float:
    """Return the factor for an item's x on a logarithmic axis, with neighbours `decades` apart."""
    return 10 ** (decades * (items.index(item) - (len(items) - 1) / 2))


def _scale(axis: Any, values: Sequence[float]) -> None:
    """Choose a logarithmic scale for values over more than a decade; below that its ticks are hard to read."""
    if max(values, default=1.0) > 10 * min(values, default=1.0):
        axis.set_yscale("log")
