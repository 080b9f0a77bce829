"""What an experiment is: cells that are computed one by one, a table and a picture of all of them.

A cell is one number's worth of work, such as a training run with one seed. Finished cells are in the JSON
file, which is written after each: an experiment that was interrupted goes on where it was.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...demo.checkpoint import write_atomically
from .. import machine

Cells = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One piece of work; ``key`` says in the JSON what it was."""

    key: str
    work: Callable[[], Any]


class Experiment(ABC):
    """A question, what is computed for it, and how the answer is shown."""

    name: str
    help: str

    def __init__(self, quick: bool) -> None:
        self.quick = quick

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """All that results depend on; a file with other ones is not gone on with."""

    @abstractmethod
    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        """Cells to compute; what a later stage is may depend on the results of earlier ones."""

    @abstractmethod
    def tables(self, cells: Cells) -> list[Table]:
        """What is printed."""

    @abstractmethod
    def verdict(self, cells: Cells) -> list[str]:
        """What it comes to, in plain words, also where that is nothing."""

    @abstractmethod
    def draw(self, cells: Cells, path: Path) -> None:
        """The picture."""

    def check(self, cells: Cells) -> list[str]:
        """What contradicts known results; empty where nothing does."""
        return []


def run(experiment: Experiment, folder: Path, console: Console) -> int:
    """Compute what is missing, then print, draw and check; returns 1 where a check failed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{experiment.name}.json"
    result = _load(file, experiment, console)
    _compute(experiment, result, file, console)
    console.print(f"wrote {file}", highlight=False, soft_wrap=True)
    show(experiment, result, folder, console)
    failed = experiment.check(result["cells"])
    for line in failed:
        console.print(f"CHECK FAILED: {line}", style="bold red", highlight=False, soft_wrap=True)
    return int(bool(failed))


def show(experiment: Experiment, result: dict[str, Any], folder: Path, console: Console) -> None:
    """Print and draw a result."""
    cells = result["cells"]
    for table in experiment.tables(cells):
        console.print(table)
    for line in experiment.verdict(cells):
        console.print(line, highlight=False, soft_wrap=True)
    picture = folder / f"{experiment.name}.png"
    experiment.draw(cells, picture)
    console.print(f"wrote {picture}", highlight=False, soft_wrap=True)


def _load(file: Path, experiment: Experiment, console: Console) -> dict[str, Any]:
    settings = json.loads(json.dumps({**experiment.settings(), "quick": experiment.quick}))
    fresh = {
        "experiment": experiment.name,
        "settings": settings,
        "command": shlex.join(["python", "-m", "stackelberg_fused", *sys.argv[1:]]),
        "commit": machine.commit(),
        "hardware": machine.hardware("cpu"),
        "versions": machine.versions(),
        "seconds": 0.0,
        "cells": {},
    }
    if not file.exists():
        return fresh
    found = json.loads(file.read_text())
    if found["settings"] != settings:
        raise SystemExit(
            f"experiment: {file} holds results of other settings; remove it or give another --out"
        )
    console.print(
        f"going on with {len(found['cells'])} finished cells of {file}",
        highlight=False,
        soft_wrap=True,
    )
    if found["commit"] != fresh["commit"]:
        found["commit"] = f"{found['commit']}, {fresh['commit']}"
    return found


def _compute(experiment: Experiment, result: dict[str, Any], file: Path, console: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for number, stage in enumerate(experiment.stages(result["cells"]), start=1):
            missing = [cell for cell in stage if cell.key not in result["cells"]]
            bar = progress.add_task(f"{experiment.name}, stage {number}", total=len(missing))
            for cell in missing:
                began = time.monotonic()
                result["cells"][cell.key] = cell.work()
                result["seconds"] = round(result["seconds"] + time.monotonic() - began, 2)
                text = json.dumps(result, indent=1) + "\n"
                write_atomically(file, lambda path, text=text: path.write_text(text))
                progress.advance(bar)
            if missing and not console.is_terminal:
                console.print(
                    f"{experiment.name}: stage {number}, {len(missing)} cells done", highlight=False
                )
