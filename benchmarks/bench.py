"""``python -m stackelberg_fused bench``: one optimizer step against torch and its peers."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..cli import positive
from . import chart, machine, report
from .preparation import BROKEN, RED, first_line
from .row_selection import chosen_rows
from .separate_processes import Apart

JSON_NAME, CHART_NAME = "bench.json", "bench.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where (default: cpu)")
    add("--out", type=Path, help="folder for bench.json and bench.png (default runs/bench)")
    add("--only", metavar="ROW", action="append", help="rows whose name contains ROW; repeatable")
    add(
        "--quick", action="store_true", help="small rows and few rounds: does it work, not how fast"
    )
    add("--rounds", type=positive(int), help="interleaved rounds per row, at most (default 60)")
    add("--seconds", type=positive(float), help="timed part of one row, at most (default 20)")
    add("--budget", type=positive(float), metavar="S", help="begin no further row after S seconds")
    add(
        "--wait",
        type=float,
        default=0,
        metavar="S",
        help="per measurement: wait and repeat until the machine was quiet, at most so long",
    )
    add(
        "--with-backward",
        action="store_true",
        help="also rows of backward pass, step and zero_grad together (--quick has them anyway)",
    )
    add("--threads", type=positive(int), help="torch.set_num_threads (default: as torch chooses)")
    add("--no-compile", action="store_true", help="leave out contestants that compile first")
    add(
        "--compile-seconds",
        type=positive(float),
        default=60.0,
        help="time box of one warm-up (default 60)",
    )
    add("--redraw", type=Path, metavar="JSON", help="only print and draw an earlier run")


def run(arguments: argparse.Namespace) -> int:
    """Measure, printing and writing each row as it comes.

    Returns 0; 1 if a contestant failed parity or a row broke down; 2 if nothing could run. A missed
    target is a result, not a failure.
    """
    if arguments.redraw:
        return _redraw(arguments.redraw, arguments.out or Path("runs/redraw"))
    arguments.out = arguments.out or Path("runs/bench")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("bench: torch sees no GPU; leave out --device cuda", file=sys.stderr)
        return 2
    rows = chosen_rows(arguments)
    if not rows:
        print(f"bench: no row of {arguments.device} matches {arguments.only}", file=sys.stderr)
        return 2
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "stackelberg_fused", *sys.argv[1:]]),
        "commit": machine.commit(),
        "hardware": machine.hardware(arguments.device),
        "versions": machine.versions(),
        "threads": torch.get_num_threads(),
        "quick": arguments.quick,
        "rows": [],
    }
    print(report.heading(result))
    began = time.monotonic()
    stopped = False
    # `timeout` sends SIGTERM: leave the chart of what there is, as after Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with Apart() as apart:
            for name, measure in rows.items():
                if arguments.budget and time.monotonic() - began > arguments.budget:
                    row: dict[str, Any] = {"name": name, "reason": "time budget spent"}
                else:
                    row = _measured(name, measure, apart)
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
    return "traceback" in row or any(e["status"] in (RED, BROKEN) for e in row.get("entries", []))


def _measured(
    name: str, measure: Callable[[Apart], dict[str, Any]], apart: Apart
) -> dict[str, Any]:
    try:
        return measure(apart)
    # one row that cannot run must not cost the others theirs
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
