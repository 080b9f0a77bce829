"""The picture of the kinds experiment: the rates of each kind by arm, and what they are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .experiment import Cells
from .kind_arms import ARMS, BY_KIND, KINDS, ONE_RATE
from .plot_style import COLORS, new_figure, save
from .statistics import interval

if TYPE_CHECKING:
    from .kinds import Kinds

TICKS = ("embeddings", "matrices", "norms,\nbiases", "head")
COLOR = dict(zip(ARMS, (COLORS[i] for i in (1, 0, 2, 4, 3, 5)), strict=True))


def draw(experiment: Kinds, cells: Cells, path: Path) -> None:
    """Write the picture."""
    figure, axes = new_figure(2, height=4.3)
    _draw_rates(axes[0], experiment, cells)
    _draw_losses(axes[1], experiment, cells)
    size = experiment.size
    save(
        figure,
        path,
        f"each arm at the best of {size.budget} points, by {size.tuning_seeds} tuning seeds; right: {size.seeds} other "
        f"seeds, mean and 95% interval; dashed: the mean at one rate\n{experiment.after_longer_runs(cells)}",
    )


def _is_main(arm: Any) -> bool:
    return arm in (ONE_RATE, BY_KIND)


def _draw_rates(axis: Any, experiment: Kinds, cells: Cells) -> None:
    for arm in ARMS:
        rates = experiment.rates(cells, arm)
        main = _is_main(arm)
        axis.plot(
            range(len(KINDS)), [rates[kind] for kind in KINDS], "o-", color=COLOR[arm],
            lw=2.8 if main else 1.3, ms=7 if main else 4, alpha=1.0 if main else 0.8, zorder=3 if main else 2,
        )  # fmt: skip
    _label(axis, experiment.rates(cells, ONE_RATE), COLOR[ONE_RATE], {"embeddings": (-6, 9)})
    # where no line passes
    places = {
        "embeddings": (10, -2),
        "matrices": (-14, -19),
        "norms and biases": (12, -6),
        "head": (-18, 9),
    }
    _label(axis, experiment.rates(cells, BY_KIND), COLOR[BY_KIND], places)
    axis.set(yscale="log", ylabel="learning rate")
    axis.set_title("best rates found, by kind of parameter", fontsize=12)
    axis.set_xticks(range(len(KINDS)), TICKS, fontsize=11)
    axis.set_xlim(-0.35, len(KINDS) - 0.5)


def _label(
    axis: Any, rates: dict[str, float], color: str, places: dict[str, tuple[float, float]]
) -> None:
    """Write rates beside their points, at so many points to the right and above."""
    from matplotlib.patheffects import withStroke

    for kind, place in places.items():
        axis.annotate(
            f"{rates[kind]:.2g}", (KINDS.index(kind), rates[kind]), place, textcoords="offset points", fontsize=10.5,
            fontweight="bold", color=color, zorder=4, path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip


def _draw_losses(axis: Any, experiment: Kinds, cells: Cells) -> None:
    control = interval(experiment.losses(cells, ONE_RATE))[0]
    axis.axvline(control, color=COLOR[ONE_RATE], lw=1, ls="--", zorder=1)
    for row, arm in enumerate(ARMS):
        losses = experiment.losses(cells, arm)
        mean, half = interval(losses)
        # side by side, lest seeds hide one another
        spread = [row + 0.3 * (i / max(1, len(losses) - 1) - 0.5) for i in range(len(losses))]
        axis.plot(losses, spread, "o", color=COLOR[arm], ms=4, alpha=0.4, mew=0)
        axis.errorbar(mean, row, xerr=half, fmt="o", color=COLOR[arm], ms=7, capsize=4, zorder=3)
        axis.annotate(
            f"{mean:.3f}", (mean, row), (0, 11), textcoords="offset points", ha="center", fontsize=11,
            fontweight="bold" if _is_main(arm) else "normal", color=COLOR[arm],
        )  # fmt: skip
    axis.set_yticks(range(len(ARMS)), [arm.label for arm in ARMS], fontsize=11)
    for label, arm in zip(axis.get_yticklabels(), ARMS, strict=True):
        label.set(color=COLOR[arm], fontweight="bold" if _is_main(arm) else "normal")
    axis.set_ylim(len(ARMS) - 0.5, -0.7)
    axis.set_xlabel("validation loss, nats per byte")
    axis.set_title(f"what they are worth after {experiment.size.steps} steps", fontsize=12)
    axis.grid(axis="y", visible=False)
