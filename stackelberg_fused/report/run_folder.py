"""Reads the folder of a run: the arms that `recorder.Recorder` wrote, also where they were interrupted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
SUFFIX = ".steps.jsonl"
MOST_STEPS = 1 << 53  # what floats count
STRUCTURE = ("kind", "step")  # of a row; everything else in it is a value


class NoRunError(ValueError):
    """Raised for a folder without a run that can be read; the message says why."""


@dataclass(frozen=True)
class Row:
    """One step or evaluation: `values` by name, and by names joined by a dot where a name has several."""

    step: int
    values: dict[str, float]


@dataclass
class Arm:
    """One training run.

    Attributes:
        name: of the arm.
        path: its file.
        header: what the file said last about the run: title, settings, environment, command.
        started: of the first header, an ISO time or "".
        steps, evaluations: rows in the order of their steps.
        finished: None where the file has no end: the run goes on, or was killed.
        unreadable: the number of lines that are no JSON, e.g. the half of one.
    """

    name: str
    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    steps: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    finished: bool | None = None
    unreadable: int = 0

    @property
    def planned(self) -> int | None:
        """The number of steps that the run was to make."""
        steps = self.header.get("steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    @property
    def last_step(self) -> int:
        return max((rows[-1].step for rows in (self.steps, self.evaluations) if rows), default=0)

    @property
    def complete(self) -> bool:
        """True if the run ended as it was to."""
        return self.finished is True and self.last_step >= (self.planned or 0)

    def section(self, name: str) -> dict[str, Any]:
        """Return "settings" or "environment" of the header."""
        found = self.header.get(name)
        return found if isinstance(found, dict) else {}


def read(folder: Path) -> list[Arm]:
    """Return the arms of a folder, in the order in which they were started.

    Raises:
        NoRunError: there is no folder, no file of an arm in it, or none with a step.
    """
    if not folder.is_dir():
        is_file = folder.exists()
        raise NoRunError(
            f"{folder} is {'a file' if is_file else 'not there'}: a folder is expected"
        )
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        inner = sorted(path.parent for path in folder.glob(f"*/*{SUFFIX}"))
        hint = f"; {inner[0]} has some" if inner else ""
        raise NoRunError(
            f"{folder} has no file *{SUFFIX}, which sf.Recorder or `stackelberg train` writes{hint}"
        )
    arms = [read_arm(path) for path in paths]
    if not any(arm.steps or arm.evaluations for arm in arms):
        raise NoRunError(f"{folder} has no step yet in {', '.join(path.name for path in paths)}")
    return sorted(arms, key=lambda arm: (arm.started, arm.path.name))


def read_arm(path: Path) -> Arm:
    """Read the file of one arm. Lines that cannot be read are counted.

    Raises:
        NoRunError: the file is of a format that this version does not know.
    """
    arm = Arm(path.name.removesuffix(SUFFIX), path)
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                kind = row["kind"]
            except (ValueError, KeyError, TypeError, RecursionError):
                arm.unreadable += bool(line.strip())
                continue
            if kind == "run":
                if row.get("format") != FORMAT:
                    raise NoRunError(
                        f"{path} has format {row.get('format')!r}, this version reads {FORMAT}"
                    )
                arm.header, arm.name = row, str(row.get("arm", arm.name))
                arm.started = arm.started or str(row.get("started", ""))
                arm.finished = None
            elif kind == "end":
                arm.finished = row.get("finished") is True
            else:
                _add(arm, row)
    return arm


def _add(arm: Arm, row: dict[str, Any]) -> None:
    """Add a step or an evaluation.

    A step that comes again, after a resume, replaces all from it on. Evaluations after the same step are one.
    """
    rows = {"step": arm.steps, "evaluation": arm.evaluations}.get(str(row["kind"]))
    step = row.get("step")
    if rows is None or type(step) is not int or not 0 <= step < MOST_STEPS:
        arm.unreadable += 1
        return
    # one that was evaluated before it was recorded does not come again
    if rows is arm.steps and rows and step <= rows[-1].step:
        _drop(arm.evaluations, step)
    is_known = rows is arm.evaluations and rows and rows[-1].step == step
    before = rows[-1].values if is_known else {}
    _drop(rows, step)
    rows.append(Row(step, {**before, **dict(_numbers(row))}))


def _drop(rows: list[Row], step: int) -> None:
    while rows and rows[-1].step >= step:
        rows.pop()


def _numbers(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if name in STRUCTURE:
            continue
        if isinstance(value, dict):
            yield from ((f"{name}.{inner}", number) for inner, number in _numbers(value))
            continue
        try:
            yield name, float(value)  # also of "nan" and "inf", which JSON has no numbers for
        except (TypeError, ValueError, OverflowError):
            yield name, math.nan
