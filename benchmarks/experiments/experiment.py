"""What an experiment is: cells that are computed one by one, a table and a picture of all of them.

A cell is one number's worth of work, such as a training run with one seed. Finished cells are in the JSON
file, which is written after each: an experiment that was interrupted goes on where it was.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
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
    """A question, what is computed for it, and how the answer is shown.

    Attributes:
        computes_with: modules that cells need, beyond those of the library itself.
        shows_with: modules that tables, verdict and picture need.
    """

    name: str
    help: str
    measures_time = False
    computes_with: tuple[str, ...] = ()
    shows_with: tuple[str, ...] = ("matplotlib",)

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


def require(kind: type[Experiment], computes: bool) -> None:
    """Exit with a line that says what to install, where a module is missing; before hours of work, not after."""
    needed = dict.fromkeys((*(kind.computes_with if computes else ()), *kind.shows_with))
    missing = [
        {"sklearn": "scikit-learn"}.get(name, name)
        for name in needed
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SystemExit(
            f"experiment: {kind.name} needs {', '.join(missing)}, not installed for {sys.executable}: "
            "pip install 'stackelberg-fused[game]'"
        )


def run(experiment: Experiment, folder: Path, console: Console, jobs: int = 1) -> int:
    """Compute what is missing, then print, draw and check; returns 1 where a check failed.

    Args:
        jobs: cells to compute at a time, each in a process of its own with one thread.
    """
    if jobs > 1 and experiment.measures_time:
        raise SystemExit(
            f"experiment: {experiment.name} measures time, which goes with --jobs 1 only"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{experiment.name}.json"
    result = _load(file, experiment, console)
    _compute(experiment, result, file, console, jobs)
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


def redraw(kind: type[Experiment], file: Path, folder: Path, console: Console) -> None:
    """Print and draw an earlier result; exits with a line where the file does not hold a finished one."""
    try:
        result = json.loads(file.read_text())
    except OSError as error:
        raise SystemExit(f"experiment: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise SystemExit(f"experiment: {file} is not JSON: {error}") from error
    of = result.get("experiment") if isinstance(result, dict) else None
    if of != kind.name:
        held = f"a result of {of}" if of else "no result of an experiment"
        raise SystemExit(f"experiment: {file} holds {held}, not of {kind.name}")
    experiment, cells = kind(result["settings"]["quick"]), result["cells"]
    # a stage looks at the results of those before it, which are all there when its turn comes
    if not all(cell.key in cells for stage in experiment.stages(cells) for cell in stage):
        raise SystemExit(
            f"experiment: {file} is not finished; go on with it, or draw it with the version that wrote it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    show(experiment, result, folder, console)


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


_cells: list[Cell] = []  # of the stage at hand, in a process that was forked for it


def _begin(cells: list[Cell]) -> None:
    torch.set_num_threads(1)  # torch's pool of threads is not there after a fork
    _cells[:] = cells


def _timed(index: int) -> tuple[Any, float]:
    """The result of a cell, and the seconds that it took."""
    began = time.monotonic()
    return _cells[index].work(), time.monotonic() - began


def _results(cells: list[Cell], jobs: int) -> Iterator[tuple[str, Any, float]]:
    """Key, result and seconds of each cell, in the order in which they are done."""
    if jobs == 1:
        _cells[:] = cells
        yield from ((cell.key, *_timed(index)) for index, cell in enumerate(cells))
        return
    # forked, because what a cell computes need not be picklable
    context = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(cells,))
    try:
        futures = {executor.submit(_timed, index): cell for index, cell in enumerate(cells)}
        for done in as_completed(futures):
            yield futures[done].key, *done.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _compute(
    experiment: Experiment, result: dict[str, Any], file: Path, console: Console, jobs: int
) -> None:
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
            for key, found, seconds in _results(missing, jobs):
                result["cells"][key] = found
                result["seconds"] = round(result["seconds"] + seconds, 2)
                text = json.dumps(result, indent=1) + "\n"
                write_atomically(file, lambda path, text=text: path.write_text(text))
                progress.advance(bar)
            if missing and not console.is_terminal:
                console.print(
                    f"{experiment.name}: stage {number}, {len(missing)} cells done", highlight=False
                )
