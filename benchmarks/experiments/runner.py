"""The run of an experiment: compute the missing cells, then print, plot and check the result.

The JSON file holds the finished cells and is written after each, so that an interrupted experiment continues where
it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
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

from ...demo.checkpoint import write_atomically
from ..machine import provenance
from .experiment import Cell, Experiment


def run(experiment: Experiment, folder: Path, console: Console, jobs: int = 1) -> int:
    """Compute the missing cells, then print, plot and check; return 1 if a check failed.

    Args:
        jobs: number of cells to compute at a time, each in its own process with one thread.
    """
    if jobs > 1 and experiment.measures_time:
        raise SystemExit(
            f"experiment: {experiment.name} measures time, which goes with --jobs 1 only"
        )
    folder.mkdir(parents=True, exist_ok=True)
    experiment.folder = folder
    file = folder / f"{experiment.name}.json"
    result = _load(file, experiment, console)
    _compute(experiment, result, file, console, jobs)
    console.print(f"wrote {file}", highlight=False, soft_wrap=True)
    show(experiment, result, folder, console)
    failures = experiment.check(result["cells"])
    for line in failures:
        console.print(f"CHECK FAILED: {line}", style="bold red", highlight=False, soft_wrap=True)
    return int(bool(failures))


def show(experiment: Experiment, result: dict[str, Any], folder: Path, console: Console) -> None:
    """Print and plot a result."""
    cells = result["cells"]
    for table in experiment.tables(cells):
        console.print(table)
    for line in experiment.verdict(cells):
        console.print(line, highlight=False, soft_wrap=True)
    plot = folder / f"{experiment.name}.png"
    experiment.draw(cells, plot)
    console.print(f"wrote {plot}", highlight=False, soft_wrap=True)


def redraw(experiment_class: type[Experiment], file: Path, folder: Path, console: Console) -> None:
    """Print and plot an earlier result; exit with a line if the file does not hold a finished one."""
    try:
        result = json.loads(file.read_text())
    except OSError as error:
        raise SystemExit(f"experiment: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise SystemExit(f"experiment: {file} is not JSON: {error}") from error
    name = result.get("experiment") if isinstance(result, dict) else None
    if name != experiment_class.name:
        content = f"a result of {name}" if name else "no result of an experiment"
        raise SystemExit(f"experiment: {file} holds {content}, not of {experiment_class.name}")
    experiment, cells = experiment_class(result["settings"]["quick"]), result["cells"]
    experiment.adopt(result["settings"])
    # a stage may read the results of earlier ones: those have been found by then
    if not all(cell.key in cells for stage in experiment.stages(cells) for cell in stage):
        raise SystemExit(
            f"experiment: {file} is not finished; continue it, or redraw it with the version that wrote it"
        )
    folder.mkdir(parents=True, exist_ok=True)
    show(experiment, result, folder, console)


def _load(file: Path, experiment: Experiment, console: Console) -> dict[str, Any]:
    settings = json.loads(json.dumps({**experiment.settings(), "quick": experiment.quick}))
    fresh = {
        "experiment": experiment.name,
        "settings": settings,
        **provenance("cpu"),
        "seconds": 0.0,
        "cells": {},
    }
    if not file.exists():
        return fresh
    result = json.loads(file.read_text())
    if result["settings"] != settings:
        raise SystemExit(
            f"experiment: {file} holds results of other settings; remove it or give another --out"
        )
    console.print(
        f"continuing with {len(result['cells'])} finished cells of {file}",
        highlight=False,
        soft_wrap=True,
    )
    if result["commit"] != fresh["commit"]:
        result["commit"] = f"{result['commit']}, {fresh['commit']}"
    machines = [result["hardware"], *result.get("continued_on", [])]
    if fresh["hardware"] not in machines:
        result["continued_on"] = [*machines[1:], fresh["hardware"]]
    return result


# the cells of the current stage; a forked process has its own copy
_cells: list[Cell] = []


def _start_process(cells: list[Cell]) -> None:
    torch.set_num_threads(1)  # torch's thread pool does not survive a fork
    _cells[:] = cells


def _timed(index: int) -> tuple[Any, float]:
    """Return the result of a cell, and the seconds that it took."""
    started = time.monotonic()
    return _cells[index].work(), time.monotonic() - started


def _results(cells: list[Cell], jobs: int) -> Iterator[tuple[str, Any, float]]:
    """Yield key, result and seconds of each cell, in the order in which they finish."""
    if jobs == 1:
        _cells[:] = cells
        yield from ((cell.key, *_timed(index)) for index, cell in enumerate(cells))
        return
    # forked, since the work of a cell need not be picklable
    context = multiprocessing.get_context("fork")
    executor = ProcessPoolExecutor(jobs, context, initializer=_start_process, initargs=(cells,))
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
            for key, cell_result, seconds in _results(missing, jobs):
                result["cells"][key] = cell_result
                result["seconds"] = round(result["seconds"] + seconds, 2)
                text = json.dumps(result, indent=1) + "\n"
                write_atomically(file, lambda path, text=text: path.write_text(text))
                progress.advance(bar)
            if missing and not console.is_terminal:
                console.print(
                    f"{experiment.name}: stage {number}, {len(missing)} cells done", highlight=False
                )
