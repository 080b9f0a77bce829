"""The picture of the kinds experiment: the rates of each kind, what they are worth, and what finding them takes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .experiment import Cells
from .kind_arms import ARMS, BY_KIND, KINDS, ONE_RATE
from .plot_style import COLORS, new_figure, save
from .statistics import interval

if TYPE_CHECKING:
    from .kinds import Kinds

TICKS = ("embeddings", "matrices", "norms,\nbiases", "head")
COLOR = dict(
    zip(ARMS, (COLORS[1], COLORS[0], COLORS[2], COLORS[4], COLORS[3], COLORS[5]), strict=True)
)


def draw(experiment: Kinds, cells: Cells, path: Path) -> None:
    """Write the picture: rates by kind, losses of the judged seeds, and the best loss by points tried."""
    figure, axes = new_figure(3, height=4.4)
    _draw_rates(axes[0], experiment, cells)
    _draw_losses(axes[1], experiment, cells)
    _draw_search(axes[2], experiment, cells)
    size = experiment.size
    save(
        figure,
        path,
        f"each arm at the best of {size.budget} points, which had up to {size.tuning_seeds} tuning seeds each; middle: "
        f"{size.seeds} other seeds, their mean and its 95% interval; dashed: the mean at one rate",
    )


def _draw_rates(axis: Any, experiment: Kinds, cells: Cells) -> None:
    for arm in ARMS:
        rates = experiment.rates(cells, arm)
        main = arm in (ONE_RATE, BY_KIND)
        axis.plot(
            range(len(KINDS)), [rates[kind] for kind in KINDS], "o-",
            color=COLOR[arm], lw=2.4 if main else 1.1, ms=6 if main else 4, alpha=1.0 if main else 0.75,
            label=arm.label, zorder=3 if main else 2,
        )  # fmt: skip
    axis.set(yscale="log", title="best rate of each kind", ylabel="learning rate")
    axis.set_xticks(range(len(KINDS)), TICKS)
    axis.legend(fontsize=8, frameon=False)


def _draw_losses(axis: Any, experiment: Kinds, cells: Cells) -> None:
    control = interval(experiment.losses(cells, ONE_RATE))[0]
    axis.axvline(control, color=COLOR[ONE_RATE], lw=1, ls="--", zorder=1)
    for row, arm in enumerate(ARMS):
        losses = experiment.losses(cells, arm)
        mean, half = interval(losses)
        spread = [row + 0.22 * (i / max(1, len(losses) - 1) - 0.5) for i in range(len(losses))]
        axis.plot(losses, spread, "o", color=COLOR[arm], ms=3.5, alpha=0.45, mew=0)
        axis.errorbar(mean, row, xerr=half, fmt="o", color=COLOR[arm], ms=6, capsize=3, zorder=3)
        axis.annotate(
            f"{mean:.3f}", (mean, row), (0, 9), textcoords="offset points", ha="center",
            fontsize=9, color=COLOR[arm],
        )  # fmt: skip
    axis.set_yticks(range(len(ARMS)), [arm.label for arm in ARMS])
    axis.set_ylim(len(ARMS) - 0.5, -0.6)
    axis.set(title="validation loss, seeds that chose nothing", xlabel="nats per byte")
    axis.grid(axis="y", visible=False)


def _draw_search(axis: Any, experiment: Kinds, cells: Cells) -> None:
    for arm in ARMS:
        best = list(itertools.accumulate(experiment.tried(cells, arm), min))
        shown = [(i + 1, loss) for i, loss in enumerate(best) if math.isfinite(loss)]
        main = arm in (ONE_RATE, BY_KIND)
        axis.step(
            *zip(*shown, strict=True), where="post", color=COLOR[arm],
            lw=2.4 if main else 1.1, alpha=1.0 if main else 0.75, zorder=3 if main else 2,
        )  # fmt: skip
    _zoom(axis, [min(experiment.tried(cells, arm)) for arm in ARMS])
    axis.set(title="best so far in tuning", xlabel="points tried", ylabel="nats per byte")


def _zoom(axis: Any, ends: list[float]) -> None:
    """Show the neighbourhood of where the searches end: they begin much higher."""
    low, high = min(ends), max(ends)
    room = max(high - low, 1e-3)
    axis.set_ylim(low - 0.15 * room, high + 1.2 * room)
