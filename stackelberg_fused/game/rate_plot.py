"""The picture of a search for rates."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .find_rates import RateSearch

MOST_GROUPS = 6  # with an axis of their own; the rest are left to the table


def draw(found: RateSearch, path: str | Path) -> None:
    """Write `RateSearch.plot`."""
    from matplotlib.figure import Figure

    shown = found.names[:MOST_GROUPS]
    figure = Figure(figsize=(2.2 * len(shown) + 3.4, 3.4), layout="constrained")
    axes = figure.subplots(1, len(shown) + 1, width_ratios=[2.2] * len(shown) + [2.6])
    one, each = found.trials.values()
    finite = [p.loss for p in (*one, *each) if math.isfinite(p.loss)]
    for i, (axis, name) in enumerate(zip(axes, shown, strict=False)):
        for points, color, label in ((one, "0.6", "one rate"), (each, "tab:orange", "by group")):
            kept = [p for p in points if math.isfinite(p.loss)]
            axis.plot(
                [p.rates[i] for p in kept],
                [p.loss for p in kept],
                "o",
                ms=4,
                color=color,
                label=label,
            )
        axis.axvline(found.one_rate, color="0.6", lw=1)
        axis.axvline(found.rates[name], color="tab:orange", lw=1)
        axis.set(xscale="log", xlabel=f"rate of {name:.24}")
        if finite and min(finite) > 0 and max(finite) > 10 * min(finite):
            axis.set_yscale("log")
        if i == 0:
            axis.set_ylabel("loss, median of the tuning seeds")
            axis.legend(fontsize=8)
    _draw_pairs(axes[-1], found)
    figure.savefig(path, dpi=130)


def _draw_pairs(axis: Any, found: RateSearch) -> None:
    """Draw the losses of both ways, joined by seed."""
    one, each = found.losses.values()
    for a, b in zip(one, each, strict=True):
        if math.isfinite(a) and math.isfinite(b):
            axis.plot([0, 1], [a, b], "-", color="0.8", lw=1)
    axis.plot([0] * len(one), one, "o", color="0.6")
    axis.plot([1] * len(each), each, "o", color="tab:orange")
    axis.set(xlim=(-0.4, 1.4), xticks=[0, 1], xticklabels=["one rate", "by group"])
    p = "" if math.isnan(found.p_value) else f", p = {found.p_value:.2g}"
    axis.set_title(f"{found.seeds} new seeds{p}", fontsize=10)
    axis.set_ylabel("loss")
