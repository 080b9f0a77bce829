"""What the page says of a run in words and in its table."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from .run_folder import Arm
from .scale import text

FRACTIONS = (0.25, 0.5, 0.75, 1.0)
FEWEST_STEPS = 100  # a shorter run is a trial and compares nothing
AVERAGED = 0.05  # of the training steps up to a point: a single step's loss is that of its batch


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; `best` marks the cells with the lowest loss of their column."""

    caption: str
    headings: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]


def which_loss(arms: list[Arm]) -> str:
    """Return "validation" if every arm has a validation loss, else "training"."""
    has_all = all(any("loss" in row.values for row in arm.evaluations) for arm in arms)
    return "validation" if has_all else "training"


def loss_at(arm: Arm, step: int, which: str, after: int = -1) -> float | None:
    """Return the last loss at or before a step, for training the mean of some; infinite if it is not finite.

    Args:
        after: the last loss has to be later than this step, or it tells of another one.
    """
    rows = arm.evaluations if which == "validation" else arm.steps
    with_loss = [row for row in rows if row.step <= step and "loss" in row.values]
    if not with_loss or with_loss[-1].step <= after:
        return None
    losses = [row.values["loss"] for row in with_loss]
    count = 1 if which == "validation" else max(1, round(AVERAGED * len(losses)))
    loss = statistics.fmean(losses[-count:])
    return loss if math.isfinite(loss) else math.inf


def verdict(arms: list[Arm]) -> str:
    """Return one sentence, and how far to trust it: what the losses of these runs support."""
    which = which_loss(arms)
    ends = sorted({arm.last_step for arm in arms})
    last = ends[0]
    found = {arm.name: loss_at(arm, last, which) for arm in arms}
    losses = {name: loss for name, loss in found.items() if loss is not None}
    diverged = [name for name, loss in losses.items() if math.isinf(loss)]
    if not losses:
        return "No loss was recorded."
    if len(diverged) == len(losses):
        runs = "Every run" if len(arms) > 1 else "The run"
        return f"{runs} diverged: the last loss is not finite."
    if len(arms) == 1:
        first = _first_loss(arms[0], which)
        fall = "" if first is None else f", {text(first)} at the start"
        (loss,) = losses.values()
        return f"The {which} loss is {_loss(loss)} after {text(last)} steps{fall}."
    if last < FEWEST_STEPS:
        return f"{last} steps show that it runs: too few to compare anything." + _diverged(diverged)
    best = min(losses, key=lambda name: losses[name])
    second = min((name for name in losses if name != best), default=best, key=lambda n: losses[n])
    distance = 1 - losses[best] / losses[second] if losses[second] > 0 else 0.0
    below = f", {100 * distance:.1f} % below {second}" if 0 < distance < 1 else ""
    lowest = f"{which} loss: {best}, {_loss(losses[best])}{below}."
    common = f"At step {text(last)}, the last that every run reached, lowest {lowest}"
    return (
        (f"Lowest final {lowest}" if len(ends) == 1 else common)
        + _diverged(diverged)
        + " One run each: how much of any gap is luck is unknown."
    )


def _diverged(names: list[str]) -> str:
    return f" Diverged: {', '.join(names)}." if names else ""


def _first_loss(arm: Arm, which: str) -> float | None:
    rows = arm.evaluations if which == "validation" else arm.steps
    return next((row.values["loss"] for row in rows if "loss" in row.values), None)


def table(arms: list[Arm]) -> Table:
    """Compare the arms at equal steps, and in the settings in which they differ."""
    which = which_loss(arms)
    whole = max(max(arm.planned or 0, arm.last_step) for arm in arms)
    steps = [max(1, round(share * whole)) for share in FRACTIONS]
    settings = own_settings(arms)
    times = [_median_time(arm) for arm in arms]
    headings = [
        "run",
        *settings,
        *(f"{share:.0%}\n{s}" for share, s in zip(FRACTIONS, steps, strict=True)),
    ]
    headings += [f"to {arms[0].name}"] * (len(arms) > 1) + ["step, µs"] * any(times)
    rows, best = [], set()
    columns = [
        [
            loss_at(arm, s, which, after=max(other for other in (0, *steps) if other < s))
            if arm.last_step >= s
            else None
            for arm in arms
        ]
        for s in steps
    ]
    for column, losses in enumerate(columns):
        lowest = min((x for x in losses if x is not None), default=math.inf)
        if len(arms) > 1 and math.isfinite(lowest):
            at = 1 + len(settings) + column
            best |= {(row, at) for row, loss in enumerate(losses) if loss == lowest}
    for index, arm in enumerate(arms):
        row = [arm.name, *(_setting(arm.section("settings").get(name)) for name in settings)]
        row += [_loss(losses[index]) for losses in columns]
        if len(arms) > 1:
            row.append("" if index == 0 else _gap(columns[-1][index], columns[-1][0]))
        if any(times):
            row.append(text(round(times[index])) if times[index] else "–")
        rows.append(row)
    unit = arms[0].section("settings").get("loss_unit")
    caption = f"{which.capitalize()} loss at equal steps" + (f", {unit}" if unit else "")
    return Table(caption, [heading.replace("_", " ") for heading in headings], rows, best)


def own_settings(arms: list[Arm]) -> list[str]:
    """Names of the plain settings in which the arms differ."""
    names = dict.fromkeys(name for arm in arms for name in arm.section("settings"))
    found = []
    for name in names:
        values = [arm.section("settings").get(name) for arm in arms]
        plain = all(not isinstance(value, (dict, list)) for value in values)
        if plain and any(value != values[0] for value in values):
            found.append(name)
    return found


def _setting(value: object) -> str:
    if value is None:
        return "–"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return text(value) if isinstance(value, (int, float)) and is_number else str(value)


def _loss(loss: float | None) -> str:
    if loss is None:
        return "–"
    if not math.isfinite(loss):
        return "not finite"
    return f"{loss:.4f}" if 1e-2 <= abs(loss) < 1e4 or loss == 0 else text(loss)


def _gap(loss: float | None, control: float | None) -> str:
    if loss is None or not control or not (math.isfinite(loss) and control > 0):
        return "–"
    share = 100 * (loss / control - 1)
    return "0.0 %" if abs(share) < 0.05 else f"{share:+.1f} %".replace("-", "−")


def _median_time(arm: Arm) -> float:
    times = [row.values["step_us"] for row in arm.steps if row.values.get("step_us", 0) > 0]
    return statistics.median(times) if times else 0.0


def conditions(arms: list[Arm]) -> list[str]:
    """Return what is wrong or unfinished, arm by arm."""
    found = []
    for arm in arms:
        of = f" of {text(arm.planned)}" if arm.planned else ""
        if arm.finished is None:
            found.append(
                f"{arm.name} has no end: it is still running, or was killed, after step {text(arm.last_step)}{of}."
            )
        elif not arm.complete:
            found.append(f"{arm.name} was stopped after step {text(arm.last_step)}{of}.")
        bad = [row.step for row in arm.steps if not math.isfinite(row.values.get("loss", 0.0))]
        if bad:
            found.append(
                f"{arm.name}: the training loss is not finite from step {text(bad[0])} on."
                if bad[-1] == arm.steps[-1].step
                else f"{arm.name}: the training loss is not finite at {text(len(bad))} steps, first at {text(bad[0])}."
            )
        skipped = sum(row.values.get("skipped", 0) > 0 for row in arm.steps)
        if skipped:
            found.append(f"{arm.name}: the gradient scaler had {text(skipped)} steps skipped.")
        first = next((row.step for row in arm.steps), 1)
        if first > 1 and len(arm.steps) > 1 and arm.steps[1].step - first == 1:
            found.append(f"{arm.name}: the steps before {text(first)} were not recorded.")
        if arm.unreadable:
            lines = "line" if arm.unreadable == 1 else "lines"
            found.append(f"{arm.path.name}: {text(arm.unreadable)} {lines} could not be read.")
    return found
