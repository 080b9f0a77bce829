"""What the page draws: the recorded values of all arms, as panels of lines."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .run_folder import Arm, Row
from .scale import Scale, scale_of, text

POINTS = 200  # of a line; of more steps each point is that of some
EARLY = 0.1  # of a run: losses fall so far in it that the rest would look flat
MOST_LINES = 16

Point = tuple[int, float]


@dataclass(frozen=True)
class Line:
    """Values of one arm over its steps.

    Attributes:
        arm: index of the arm, which has the color.
        label: what stands at its end.
        points: (step, value); a value that is not finite is a gap.
        style: index of the dashes.
        dots: each point is a measurement of its own, and is drawn as such.
        of: the number of rows that each point is of.
    """

    arm: int
    label: str
    points: list[Point]
    style: int = 0
    dots: bool = False
    of: int = 1


@dataclass(frozen=True)
class Panel:
    """One chart: lines on one scale, and what there is to say about them."""

    title: str
    subtitle: str
    lines: list[Line]
    scale: Scale
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """How values of a kind are drawn.

    Attributes:
        subtitle: under the title.
        thin: makes one number of several steps'.
        thinned: how to say that.
        late: the beginning, which is steep, may lie outside of the frame.
        scale: a fixed scale.
        points: of a line.
    """

    subtitle: str = ""
    thin: Callable[[list[float]], float] = statistics.fmean
    thinned: str = "the mean"
    late: bool = False
    scale: Scale | None = None
    points: int = POINTS


def _last(values: list[float]) -> float:
    return values[-1]


def _mean_above_zero(values: list[float]) -> float:
    """Of a player that waits for its turn (`update_every`, `step(role=)`) a norm of 0 is reported."""
    return statistics.fmean([value for value in values if value > 0] or [0.0])


RATE = Kind("by group; solid: head, dashed: body", thin=_last, thinned="the last")
NORM = Kind("before clipping", thin=_mean_above_zero, thinned="the mean, zeros (no turn) left out,")
CLIP = Kind("1: not clipped", scale=Scale(0.0, 1.06))
TIME = Kind("microseconds", thin=statistics.median, thinned="the median", points=40)
GAP = Kind("loss above that of the best head for the body of the moment")
OTHER = Kind(late=True)


def panels(arms: list[Arm]) -> tuple[list[Panel], list[str]]:
    """Return the panels of a run, and what is missing in it."""
    unit = next((str(u) for a in arms if (u := a.section("settings").get("loss_unit"))), "")
    loss = Kind(unit, late=True)
    found, missing = [], []
    for title, rows, name, kind, otherwise in (
        ("Validation loss", "evaluations", "loss", loss, "no evaluation was recorded"),
        ("Training loss", "steps", "loss", loss, "no training step was recorded"),
    ):
        lines = _lines(arms, rows, name, kind)
        found += [_panel(title, lines, kind)] if lines else []
        missing += [] if lines else [f"{title}: {otherwise}."]
    rates = _by_name(arms, "rate")
    found += [_rates(arms, rates)] if rates else []
    missing += [] if rates else ["Learning rates: no optimizer was given to the recorder."]
    norms = _by_role(arms, "grad_norm", "Gradient norm", NORM)
    missing += [] if norms else ["Gradient norms: none could be measured in this run."]
    clips = _by_role(arms, "clip_factor", "Clip factor", CLIP)
    if not clips:
        missing.append("Clip factors: nothing in this run clips gradients (max_grad_norm).")
    elif all(value == 1 for panel in clips for line in panel.lines for _, value in line.points):
        missing.append("Clip factors: all were 1, so nothing was clipped.")
        clips = []
    found += [*norms, *clips]
    gaps = _lines(arms, "evaluations", "follower_gap", GAP)
    if gaps:
        panel = _panel("Follower gap", gaps, GAP, scale_of(_framed(gaps, GAP), cut=False))
        how = next((str(h) for a in arms if (h := a.section("settings").get("follower_gap"))), "")
        found.append(replace(panel, notes=[*panel.notes, *([how] if how else [])]))
    else:
        missing.append("Follower gap: it was not measured.")
    return [*found, *_others(arms)], missing


def _rows(arm: Arm, which: str) -> list[Row]:
    return arm.steps if which == "steps" else arm.evaluations


def _lines(arms: list[Arm], which: str, name: str, kind: Kind) -> list[Line]:
    lines = []
    for index, arm in enumerate(arms):
        points = [(r.step, r.values[name]) for r in _rows(arm, which) if name in r.values]
        if points:
            few = which == "evaluations" and len(points) <= 40
            size = math.ceil(len(points) / kind.points)
            lines.append(Line(index, arm.name, thinned(points, size, kind.thin), 0, few, size))
    return lines


def _panel(title: str, lines: list[Line], kind: Kind, scale: Scale | None = None) -> Panel:
    scale = scale or kind.scale or scale_of(_framed(lines, kind))
    return Panel(title, kind.subtitle, lines, scale, _notes(lines, scale, kind))


def _framed(lines: list[Line], kind: Kind) -> list[float]:
    """Values that the frame is chosen for."""
    last = max(line.points[-1][0] for line in lines)
    from_step = EARLY * last if kind.late else -math.inf
    values = [v for line in lines for step, v in line.points if step >= from_step]
    return values or [v for line in lines for _, v in line.points]


def _notes(lines: list[Line], scale: Scale, kind: Kind) -> list[str]:
    notes = []
    most = max(line.of for line in lines)
    if most > 1:
        notes.append(f"Each point is {kind.thinned} of {most} recorded steps.")
    finite = [(v, step) for line in lines for step, v in line.points if math.isfinite(v)]
    above = [pair for pair in finite if pair[0] > scale.high]
    below = [pair for pair in finite if pair[0] < scale.low]
    for outside, way, worst in ((above, "above: up", max), (below, "below: down", min)):
        if outside and not (scale.log and worst(outside)[0] <= 0):
            value, step = worst(outside)
            notes.append(f"Outside of the frame, {way} to {text(value)} at step {text(step)}.")
    if scale.log and any(value <= 0 for value, _ in finite):
        notes.append("Values of 0 have no place on this scale.")
    return notes


def thinned(points: list[Point], size: int, thin: Callable[[list[float]], float]) -> list[Point]:
    """Return a point for every `size`, at the last of their steps; one value that is not finite makes it a gap."""
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], _one([v for _, v in part], thin)) for part in parts]


def _one(values: list[float], thin: Callable[[list[float]], float]) -> float:
    return thin(values) if all(map(math.isfinite, values)) else math.nan


def _by_name(arms: list[Arm], prefix: str) -> list[str]:
    """Names under a prefix, in the order in which they come."""
    found: dict[str, None] = {}
    for arm in arms:
        for row in arm.steps[:1] + arm.steps[-1:]:
            found.update(
                dict.fromkeys(n.partition(".")[2] for n in row.values if n.startswith(f"{prefix}."))
            )
    return list(found)


def _by_role(arms: list[Arm], prefix: str, title: str, kind: Kind) -> list[Panel]:
    """A panel for each role, on one scale; the total only where there are no roles."""
    names = _by_name(arms, prefix)
    names = [name for name in names if name != "total"] or names
    lines = {name: _lines(arms, "steps", f"{prefix}.{name}", kind) for name in names}
    lines = {name: some for name, some in lines.items() if some}
    if not lines:
        return []
    scale = kind.scale or scale_of([v for some in lines.values() for v in _framed(some, kind)])
    return [_panel(f"{title}, {name}", some, kind, scale) for name, some in lines.items()]


def _rates(arms: list[Arm], names: list[str]) -> Panel:
    """All rates in one panel. An arm whose groups share a rate at every step has one line."""
    lines: list[Line] = []
    for index, arm in enumerate(arms):
        seen: dict[tuple[Point, ...], list[str]] = {}
        size = 1
        for name in names:
            for line in _lines([arm], "steps", f"rate.{name}", RATE):
                seen.setdefault(tuple(line.points), []).append(name)
                size = line.of
        for points, shared in seen.items():
            style = 1 if shared == ["body"] else 0 if "head" in shared else names.index(shared[0])
            label = arm.name if len(seen) == 1 else f"{arm.name}, {', '.join(shared)}"
            lines.append(Line(index, label, list(points), style, of=size))
    shown = lines[:MOST_LINES]
    panel = _panel("Learning rates", shown, RATE, scale_of(_framed(shown, RATE), cut=False))
    more = [f"{len(lines) - MOST_LINES} more lines are left out."] if lines != shown else []
    styles = {line.style for line in shown}
    subtitle = RATE.subtitle if styles == {0, 1} and {"body", "head"} <= set(names) else "by group"
    return replace(panel, subtitle=subtitle, notes=[*more, *panel.notes])


def _others(arms: list[Arm]) -> list[Panel]:
    """A panel for each value of the user's own."""
    own = ("loss", "rate", "grad_norm", "clip_factor", "skipped", "follower_gap")
    found = []
    for which in ("evaluations", "steps"):
        rows = [row for arm in arms for row in _rows(arm, which)]
        names = dict.fromkeys(name for row in rows for name in row.values)
        for name in names:
            if name.partition(".")[0] in own:
                continue
            kind = TIME if name == "step_us" else OTHER
            title = "Time of an optimizer step" if name == "step_us" else name.replace("_", " ")
            where = "" if which == "steps" or kind is TIME else "at each evaluation"
            lines = _lines(arms, which, name, kind)
            panel = _panel(title[:1].upper() + title[1:], lines, kind)
            found.append(replace(panel, subtitle=panel.subtitle or where))
    return found
