"""The tables of the actor-critic experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from .actor import OURS, TIMED, TORCHS, Arm, say_interval
from .experiment import Cells

if TYPE_CHECKING:
    from .actor import ActorCritic


def _row(experiment: ActorCritic, cells: Cells, arm: Arm) -> list[str]:
    """Ratio, rates of critics and actor, and the returns of training and of the learned policy."""
    rates, seeds = arm.rates(), experiment.seeds
    shown = [say_interval(experiment.found(cells, arm, seeds, w)) for w in ("last", "judged")]
    return [f"{arm.ratio:.3g}", f"{rates.critics:.2g}, {rates.actor:.2g}", *shown]


def returns(experiment: ActorCritic, cells: Cells) -> Table:
    """Tell how the optimizers learn, and the differences to three fused Adams."""
    size = experiment.size
    title = (
        f"Return after {size.steps} steps: the last {size.last} episodes of training, the learned policy, and what "
        f"they are more than with three fused Adams; {len(experiment.seeds)} seeds"
    )
    table = Table(title=title)
    columns = "optimizer", "ratio", "critics, actor", "training", "policy", "more", "more"
    for column in columns:
        table.add_column(column)
    torchs = experiment.best_of_all(cells, TORCHS)
    for arm in experiment.compared(cells):
        more = [_more(experiment, cells, arm, torchs, what) for what in ("last", "judged")]
        table.add_row(_lines(arm.optimizer), *_row(experiment, cells, arm), *more)
    return table


def _more(experiment: ActorCritic, cells: Cells, arm: Arm, other: Arm, what: str = "last") -> str:
    """Write the mean of the paired differences with half its interval; nothing beside itself."""
    mean, half = experiment.gain(cells, arm, other, what)
    return "" if arm == other else f"{mean:+.1f} +- {half:.1f}"


def _lines(name: str) -> str:
    return name.replace(", ", ",\n")


def ratios(experiment: ActorCritic, cells: Cells) -> Table:
    """Tell how each ratio learns at its own best rate, and the difference to one tuned rate."""
    table = Table(title="One launch: ratio of the critics' rate to the actor's")
    for column in ("ratio", "critics, actor", "training", "policy", "more", "p"):
        table.add_column(column)
    one = experiment.best(cells, OURS, 1.0)
    for arm in experiment.by_ratio(cells):
        p = "" if arm == one else f"{experiment.p_value(cells, arm.ratio):.2g}"
        table.add_row(*_row(experiment, cells, arm), _more(experiment, cells, arm, one), p)
    return table


def costs(experiment: ActorCritic, cells: Cells) -> Table:
    """Tell what an update costs."""
    table = Table(
        title="An update, mean over its turns: torch operators and launches of the optimizer's part; microseconds of "
        "that part and of the whole, by width of the layers (medians of interleaved rounds)"
    )
    for column in ("optimizer", "operators", "launches"):
        table.add_column(column)
    for width in experiment.timed:
        for what in ("part", "whole"):
            table.add_column(f"{what}, {width}", justify="right")
    for name in TIMED:
        counted = cells[f"count, {name}"]
        table.add_row(
            _lines(name),
            f"{counted['operators']:g}",
            f"{counted['launches']:g}",
            *(
                f"{experiment.median(cells, width, what, name):,.0f}"
                for width in experiment.timed
                for what in ("optimizer", "update")
            ),
        )
    return table
