"""The picture of a search for rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .rate_search import EACH, ONE, RateSearch, shortened
from .rate_study import Measured

MOST_GROUPS = 6  # with an axis of their own; the rest are left to the table
COLORS = {ONE: "0.6", EACH: "tab:orange"}
SPANS = 10  # of the better half of the losses: higher ones are marked at the top edge


def draw(found: RateSearch, path: str | Path) -> None:
    """Write `RateSearch.plot`."""
    from matplotlib.figure import Figure

    shown = found.names[:MOST_GROUPS]
    figure = Figure(figsize=(2.2 * len(shown) + 3.4, 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown) + 1, width_ratios=[2.2] * len(shown) + [2.6])
    limits = loss_limits([p.loss for points in found.trials.values() for p in points])
    for i, (axis, name) in enumerate(zip(axes, shown, strict=False)):
        for kind, points in found.trials.items():
            _draw_points(axis, points, i, limits[1], kind)
            rate = found.one_rate if kind == ONE else found.rates[name]
            axis.axvline(rate, color=COLORS[kind], lw=1)
        axis.set(xscale="log")
        axis.set_xlabel(f"rate of\n{shortened(name, 24)}", fontsize=9)
        if limits[0] > 0 and limits[1] > 10 * limits[0]:
            axis.set_yscale("log")
        axis.set_ylim(*limits)
        if i == 0:
            axis.set_ylabel("loss, median of the tuning seeds")
    left_out = len(found.names) - len(shown)
    if left_out:
        axes[len(shown) - 1].set_title(
            f"and {left_out} more group{'s' if left_out > 1 else ''} in the table", fontsize=10
        )
    _draw_seeds(axes[-1], found)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path, dpi=130)


def loss_limits(losses: list[float]) -> tuple[float, float]:
    """Return the ends of an axis for these losses, one of which is finite: losses far above the better half are cut."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    low, middle = finite[0], finite[len(finite) // 2]
    high = min(finite[-1], low + SPANS * (middle - low)) if middle > low else finite[-1]
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low * 0.9 if 0 < low <= margin else low - margin), high + margin


def _draw_points(axis: Any, points: list[Measured], i: int, top: float, kind: str) -> None:
    """Draw losses over the rate of a group, and at the top edge those above it (^) and points given up (x)."""
    kept = [p for p in points if p.loss <= top]
    style: dict[str, Any] = {"ls": "", "color": COLORS[kind], "ms": 4}
    axis.plot([p.rates[i] for p in kept], [p.loss for p in kept], marker="o", label=kind, **style)
    for marker, outside in (
        ("^", [p for p in points if top < p.loss < math.inf]),
        ("x", [p for p in points if math.isinf(p.loss)]),
    ):
        axis.plot(
            [p.rates[i] for p in outside],
            [0.98] * len(outside),
            marker=marker,
            transform=axis.get_xaxis_transform(),
            **style,
        )


def _draw_seeds(axis: Any, found: RateSearch) -> None:
    """Draw the losses of each way, joined by seed."""
    for pair in zip(*found.losses.values(), strict=True):
        if len(pair) > 1 and all(map(math.isfinite, pair)):
            axis.plot(range(len(pair)), pair, "-", color="0.8", lw=1)
    for place, (kind, losses) in enumerate(found.losses.items()):
        finite = [loss for loss in losses if math.isfinite(loss)]
        axis.plot([place] * len(finite), finite, "o", color=COLORS[kind])
    labels = ["one rate", "by group"][: len(found.losses)]
    axis.set(xlim=(-0.4, len(labels) - 0.6), xticks=range(len(labels)), xticklabels=labels)
    p = "" if math.isnan(found.p_value) else f", p = {found.p_value:.2g}"
    axis.set_title(f"{found.seeds} new seeds{p}", fontsize=10)
    axis.set_ylabel("loss")
