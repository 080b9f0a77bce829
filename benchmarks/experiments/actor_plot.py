"""The picture of the actor-critic experiment: learning, time, differences of paired seeds, and ratios."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .actor import OURS, TIMED, TORCHS, Arm
from .actor_training import EPISODE
from .experiment import Cells
from .plot_style import COLORS, new_figure, save
from .statistics import interval

if TYPE_CHECKING:
    from .actor import ActorCritic

INK = COLORS[-1]
TITLE: dict[str, Any] = {"fontsize": 10.5, "loc": "left"}
OF = dict(zip(TIMED, (COLORS[0], COLORS[5], COLORS[4], COLORS[1], COLORS[6]), strict=True))


def draw(experiment: ActorCritic, cells: Cells, path: Path) -> None:
    """Write the picture."""
    figure, axes = new_figure(2, 2, height=3.7)
    _draw_learning(axes[0], experiment, cells)
    _draw_time(axes[1], experiment, cells)
    _draw_differences(axes[2], experiment, cells)
    _draw_ratios(axes[3], experiment, cells)
    count = len(experiment.seeds)
    note = f"Pendulum-v1, soft actor-critic, {count} seeds; dots: seeds; squares and bars: means, 95% intervals"
    save(figure, path, note)


def _draw_learning(axis: Any, experiment: ActorCritic, cells: Cells) -> None:
    for optimizer in (TORCHS, OURS):
        arm = experiment.best_of_all(cells, optimizer)
        curves = torch.tensor([cells[arm.key(seed)]["returns"] for seed in experiment.seeds])
        steps = [EPISODE * (episode + 1) for episode in range(curves.shape[1])]
        low, high = curves.quantile(0.25, dim=0), curves.quantile(0.75, dim=0)
        axis.fill_between(steps, low, high, color=OF[optimizer], alpha=0.18, lw=0)
        axis.plot(steps, curves.mean(0), color=OF[optimizer], lw=2, label=optimizer)
    axis.legend(frameon=False, loc="lower right", labelcolor="linecolor")
    axis.set(xlabel="steps of the environment", ylabel="return of an episode")
    axis.set_title("learning, each at its best rates (band: quartiles)", **TITLE)


def _draw_time(axis: Any, experiment: ActorCritic, cells: Cells) -> None:
    width = min(experiment.timed)
    names = list(TIMED)[::-1]
    for place, name in enumerate(names):
        spent = experiment.median(cells, width, "optimizer", name)
        axis.barh(place, spent, color=OF[name], height=0.6)
        said = f" {spent:,.0f} us, {_calls(cells[f'count, {name}'])}"
        axis.text(spent, place, said, va="center", fontsize=9, color=OF[name])
    longest = max(experiment.median(cells, width, "optimizer", name) for name in names)
    axis.set_xlim(0, 1.8 * longest)
    axis.set_yticks(range(len(names)), [_lines(name) for name in names], fontsize=9)
    axis.grid(visible=False, axis="y")
    axis.set_xlabel("microseconds of an update that are the optimizer's")
    axis.set_title(f"cost of critics, actor, temperature and averages, {width} wide", **TITLE)


def _calls(counted: dict[str, float]) -> str:
    """Say what is called: launches of ours, or torch's operators."""
    if not counted["launches"]:
        return f"{counted['operators']:g} operators"
    return "1 launch" if counted["launches"] == 1 else f"{counted['launches']:g} launches"


def _lines(name: str) -> str:
    return name.replace(", ", ",\n")


def _draw_differences(axis: Any, experiment: ActorCritic, cells: Cells) -> None:
    torchs = experiment.best_of_all(cells, TORCHS)
    arms = [arm for arm in experiment.compared(cells) if arm != torchs]
    for place, arm in enumerate(arms):
        sides = [experiment.found(cells, a, experiment.seeds) for a in (arm, torchs)]
        gains = [a - b for a, b in zip(*sides, strict=True)]
        _draw_values(axis, place, gains, OF[arm.optimizer])
    labels = [_difference_label(arm, torchs) for arm in arms]
    axis.axhline(0.0, color=INK, ls="--", lw=1)
    axis.set_xticks(range(len(arms)), labels, fontsize=8.5)
    axis.set_xlim(-0.5, len(arms) - 0.4)
    axis.grid(visible=False, axis="x")
    axis.set_ylabel("difference of returns")
    axis.set_title("last episodes: more than three fused Adams", **TITLE)


def _difference_label(arm: Arm, torchs: Arm) -> str:
    name = _lines(arm.optimizer)
    if arm.optimizer != OURS:
        return name
    same = (arm.ratio, arm.exponent) == (torchs.ratio, torchs.exponent)
    return f"{name},\n{'same rates' if same else 'own best rates'}"


def _draw_ratios(axis: Any, experiment: ActorCritic, cells: Cells) -> None:
    arms = experiment.by_ratio(cells)
    for place, arm in enumerate(arms):
        values = experiment.found(cells, arm, experiment.seeds)
        _draw_values(axis, place, values, OF[OURS])
    labels = [
        f"{arm.ratio:.2g}\n{arm.rates().critics:.2g}, {arm.rates().actor:.2g}" for arm in arms
    ]
    axis.set_xticks(range(len(arms)), labels)
    axis.set_xlim(-0.5, len(arms) - 0.4)
    axis.grid(visible=False, axis="x")
    axis.set(xlabel="ratio of rates; rates of critics, actor", ylabel="return")
    axis.set_title("critics faster than the actor, one launch", **TITLE)


def _draw_values(axis: Any, place: int, values: list[float], color: str) -> None:
    """Draw one arm: the seeds, and beside them their mean."""
    mean, half = interval(values)
    x = [place + 0.03 * number for number in range(len(values))]
    axis.plot(x, values, "o", color=color, alpha=0.5, ms=4, mew=0)
    axis.errorbar(place - 0.12, mean, yerr=half, fmt="s", ms=5, color=color, capsize=4)
