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
    """Tell how the optimizers learn, and the difference to three fused Adams."""
    size = experiment.size
    title = f"Return after {size.steps} steps: last {size.last} episodes, learned policy; {len(experiment.seeds)} seeds"
    table = Table(title=title)
    columns = ("optimizer", "ratio", "rates: critics, actor", "training", "policy", "difference")
    for column in columns:
        table.add_column(column)
    torchs = experiment.best_of_all(cells, TORCHS)
    for arm in experiment.compared(cells):
        mean, half = experiment.gain(cells, arm, torchs)
        apart = "" if arm == torchs else f"{mean:+.1f} +- {half:.1f}"
        table.add_row(arm.optimizer, *_row(experiment, cells, arm), apart)
    return table


def ratios(experiment: ActorCritic, cells: Cells) -> Table:
    """Tell how each ratio learns at its own best rate, and the difference to one tuned rate."""
    table = Table(title="One launch: ratio of the critics' rate to the actor's")
    for column in ("ratio", "rates: critics, actor", "training", "policy", "difference", "p"):
        table.add_column(column)
    one = experiment.best(cells, OURS, 1.0)
    for arm in experiment.by_ratio(cells):
        mean, half = experiment.gain(cells, arm, one)
        apart, p = f"{mean:+.1f} +- {half:.1f}", f"{experiment.p_value(cells, arm.ratio):.2g}"
        table.add_row(*_row(experiment, cells, arm), *(("", "") if arm == one else (apart, p)))
    return table


def costs(experiment: ActorCritic, cells: Cells) -> Table:
    """Tell what an update costs."""
    table = Table(title="An update: means over its turns, medians of interleaved rounds in us")
    for column in ("optimizer", "torch operators", "launches of ours"):
        table.add_column(column)
    for width, rows in experiment.timed.items():
        for what in ("optimizer", "update"):
            table.add_column(f"{what}, {width} wide, {rows} rows", justify="right")
    for name in TIMED:
        counted = cells[f"count, {name}"]
        table.add_row(
            name,
            f"{counted['operators']:g}",
            f"{counted['launches']:g}",
            *(
                f"{experiment.median(cells, width, what, name):,.0f}"
                for width in experiment.timed
                for what in ("optimizer", "update")
            ),
        )
    return table
