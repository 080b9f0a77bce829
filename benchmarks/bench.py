"""``python -m stackelberg_fused bench``: one optimizer step beside torch's and other libraries'."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..cli import positive
from . import chart, machine, report
from .preparation import BROKEN, PARITY_FAILED, first_line
from .row_selection import Measure, selected_rows
from .separate_processes import SeparateProcesses

JSON_NAME, CHART_NAME = "bench.json", "bench.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default: cpu)")
    add("--out", type=Path, help="folder for bench.json and bench.png (default runs/bench)")
    add(
        "--only",
        metavar="ROW",
        action="append",
        help="only rows whose name contains ROW; repeatable",
    )
    add(
        "--quick",
        action="store_true",
        help="small rows and few rounds: shows whether everything works, not how fast it is",
    )
    add("--rounds", type=positive(int), help="most interleaved rounds per row (default 60)")
    add("--seconds", type=positive(float), help="longest timed part of a row (default 20)")
    add("--budget", type=positive(float), metavar="S", help="start no further row after S seconds")
    add(
        "--wait",
        type=float,
        default=0,
        metavar="S",
        help="repeat each measurement until the machine was quiet, for at most S seconds",
    )
    add(
        "--with-backward",
        action="store_true",
        help="also time backward pass, step and zero_grad together (--quick does so anyway)",
    )
    add("--threads", type=positive(int), help="torch.set_num_threads (default: as torch chooses)")
    add("--no-compile", action="store_true", help="leave out contestants that compile")
    add(
        "--compile-seconds",
        type=positive(float),
        default=60.0,
        help="time limit of one contestant's compilation (default 60)",
    )
    add("--redraw", type=Path, metavar="JSON", help="only print and draw the run of this file")


def run(arguments: argparse.Namespace) -> int:
    """Measure the rows; print and write each as soon as it is done.

    Returns 0; 1 if a contestant failed parity or a row raised an error; 2 if nothing could run; 130 if the
    run was interrupted. A missed target is a result, not a failure.
    """
    if arguments.redraw:
        return _redraw(arguments.redraw, arguments.out or Path("runs/redraw"))
    arguments.out = arguments.out or Path("runs/bench")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("bench: torch sees no GPU; leave out --device cuda", file=sys.stderr)
        return 2
    rows = selected_rows(arguments)
    if not rows:
        print(f"bench: no row of {arguments.device} matches {arguments.only}", file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **machine.provenance(arguments.device),
        "threads": torch.get_num_threads(),
        "quick": arguments.quick,
        "rows": [],
    }
    print(report.heading(result))
    began = time.monotonic()
    stopped = False
    # `timeout` sends SIGTERM: draw the rows that there are, as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with SeparateProcesses() as processes:
            for name, measure in rows.items():
                if arguments.budget and time.monotonic() - began > arguments.budget:
                    row: dict[str, Any] = {"name": name, "reason": "time budget spent"}
                else:
                    row = _measured(name, measure, processes)
                result["rows"].append(row)
                result["seconds"] = round(time.monotonic() - began, 1)
                report.write(result, arguments.out / JSON_NAME)
                print("\n" + "\n".join(report.lines(row)), flush=True)
    except KeyboardInterrupt:
        stopped = True
        print("\nbench: interrupted; the rows above are written")
    _draw(result, arguments.out)
    return 130 if stopped else int(any(map(_failed, result["rows"])))


def _failed(row: dict[str, Any]) -> bool:
    statuses = {entry["status"] for entry in row.get("entries", [])}
    return "traceback" in row or bool(statuses & {PARITY_FAILED, BROKEN})


def _measured(name: str, measure: Measure, processes: SeparateProcesses) -> dict[str, Any]:
    try:
        return measure(processes)
    # the run goes on with the other rows
    except Exception as error:
        return {
            "name": name,
            "reason": first_line(error),
            "traceback": traceback.format_exc().splitlines(),
        }


def _draw(result: dict[str, Any], folder: Path) -> None:
    try:
        drawn = chart.draw(result, folder / CHART_NAME)
    except ImportError as error:
        print(f"\nno {CHART_NAME}: {error}; pip install matplotlib")
        return
    if drawn:
        print(f"\nwrote {folder / JSON_NAME} and {folder / CHART_NAME}")


def _redraw(source: Path, folder: Path) -> int:
    try:
        result = json.loads(source.read_text())
    except (OSError, ValueError) as error:
        print(f"bench: cannot read {source}: {first_line(error)}", file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    print(report.heading(result))
    for row in result["rows"]:
        print("\n" + "\n".join(report.lines(row)))
    return 0 if chart.draw(result, folder / CHART_NAME) else 2
