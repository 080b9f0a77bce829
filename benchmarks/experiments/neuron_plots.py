"""The picture of the neurons experiment: fits of the 1-D target, losses over steps, and the spread over seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .experiment import Cells
from .neuron_arms import EXACT_HEAD, ONE_RATE, Arm, evaluated_arms
from .neuron_data import WIDTH_1D, midpoints, target_1d
from .neuron_networks import outputs, smooth_step
from .neuron_problems import Problem
from .neuron_training import MOMENTS
from .plot_style import COLORS, new_figure, save
from .statistics import quartiles

if TYPE_CHECKING:
    from .neurons import Neurons

ORANGE, DARK, TEAL, VIOLET = COLORS[:4]
GREY = COLORS[-1]


def draw(experiment: Neurons, cells: Cells, path: Path) -> None:
    """Write the picture: two panels of fits and two of losses over steps, then a panel of seeds for each problem."""
    figure, axes = new_figure(4, 2, height=4.0)
    problem = experiment.problems[0]
    fast = experiment.two_time_scales(cells, problem)
    losses = experiment.losses(cells, problem, ONE_RATE)
    middle = sorted(range(len(losses)), key=losses.__getitem__)[len(losses) // 2]
    for axis, arm, title in (
        (axes[0], ONE_RATE, "one rate, tuned"),
        (axes[1], fast, f"two time scales: head {fast.ratio:,.0f} times faster"),
    ):
        _draw_fits(axis, experiment.result(cells, problem, arm), middle, _color(arm))
        median = experiment.median(cells, problem, arm)
        count = experiment.recovered(cells, problem, arm)
        axis.set_title(f"{title}\nmedian loss {median:.2g}; {count} seeds recover the target")
    curves = [problem for problem in experiment.problems if problem.name in ("1-D", "10-D")]
    for axis, drawn in zip(axes[2:4], curves, strict=True):
        _draw_curves(axis, experiment, cells, drawn)
    for axis, drawn in zip(axes[4:], experiment.problems, strict=True):
        _draw_seeds(axis, experiment, cells, drawn)
    save(
        figure,
        path,
        "every arm at its best rate, all with the same steps; ratio: the head's rate to the body's; bold: the seed "
        "that is the median at one rate; thin: all seeds; bands and bars: quartiles; dashed: 1% of the target's "
        "variance, below which it counts as recovered",
    )


def _draw_fits(axis: Any, result: dict[str, Any], middle: int, color: str) -> None:
    x = midpoints(1500)
    u, a = torch.tensor(result["positions"]), torch.tensor(result["head"])
    fits = outputs(smooth_step(WIDTH_1D)(x - u[..., None])[0], a)
    axis.plot(x, fits.T, color=color, alpha=0.16, lw=0.8)
    axis.plot(x, target_1d(x), color=DARK, lw=2.6, alpha=0.85, label="target")
    axis.plot(x, fits[middle], color=color, lw=1.8, label="fit of the median seed")
    axis.plot(u[middle], torch.full_like(u[middle], -0.55), "|", color=color, ms=9, mew=1.4)
    axis.set(xlim=(0, 1), ylim=(-0.9, 7.2), xlabel="x (ticks: the neurons)", ylabel="f(x)")
    axis.legend(frameon=False, loc="upper center", ncols=2)


def _draw_curves(axis: Any, experiment: Neurons, cells: Cells, problem: Problem) -> None:
    for arm in (ONE_RATE, experiment.two_time_scales(cells, problem), EXACT_HEAD):
        _draw_curve(axis, problem, experiment.result(cells, problem, arm)["losses"], arm)
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="loss")
    axis.set_ylim(bottom=problem.recovered / 12)  # room for the legend
    axis.set_title(f"{problem.name}: loss over steps")
    axis.legend(frameon=False, loc="lower left")


def _draw_curve(axis: Any, problem: Problem, losses: list[list[float]], arm: Arm) -> None:
    steps = [part * problem.steps for part in MOMENTS]
    low, middle, high = zip(*map(quartiles, losses), strict=True)
    axis.plot(steps, middle, "o-", ms=3.5, color=_color(arm), label=arm.label)
    axis.fill_between(steps, low, high, color=_color(arm), alpha=0.18, lw=0)
    axis.axhline(problem.recovered, color=GREY, ls="--", lw=1)


def _draw_seeds(axis: Any, experiment: Neurons, cells: Cells, problem: Problem) -> None:
    arms = evaluated_arms(problem)
    for place, arm in enumerate(arms):
        losses, color = experiment.losses(cells, problem, arm), _color(arm)
        shift = torch.linspace(-0.28, 0.28, len(losses))
        shown = [loss if math.isfinite(loss) else math.nan for loss in losses]
        axis.plot(place + shift, shown, "o", color=color, alpha=0.35, ms=3, mew=0)
        low, middle, high = quartiles(losses)
        axis.plot([place - 0.32, place + 0.32], [middle, middle], color=color, lw=2.4)
        axis.plot([place, place], [low, high], color=color, lw=1.2)
    axis.axhline(problem.recovered, color=GREY, ls="--", lw=1)
    axis.set_xticks(range(len(arms)), [arm.label for arm in arms], fontsize=8)
    axis.tick_params(axis="x", rotation=55)
    for label in axis.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axis.grid(visible=False, axis="x")
    axis.set(yscale="log", ylabel="loss")
    axis.set_title(f"{problem.name}: {problem.steps:,} steps, every seed")


def _color(arm: Arm) -> str:
    if arm.published:
        return GREY
    if arm.mode == "simultaneous":
        return ORANGE if arm == ONE_RATE else TEAL
    return VIOLET if arm == EXACT_HEAD else DARK
