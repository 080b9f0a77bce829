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
from . import chart, host, machine, pools, report
from .apart import Apart
from .entries import BROKEN, RED, Settings, first_line
from .harness import run_row
from .peers import TORCH_FUSED, Contestant, contestants
from .workloads import Workload, quick_workloads, workloads

JSON_NAME, CHART_NAME = "bench.json", "bench.png"
QUICK_ROUNDS, QUICK_SECONDS, QUICK_HOST_COUNTS = 4, 0.4, (2, 40)


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
    rows = _chosen_rows(arguments)
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


def _chosen_rows(arguments: argparse.Namespace) -> dict[str, Callable[[Apart], dict[str, Any]]]:
    quick = arguments.quick
    settings = Settings(
        device=arguments.device,
        rounds=arguments.rounds or (QUICK_ROUNDS if quick else 60),
        seconds=arguments.seconds or (QUICK_SECONDS if quick else 20.0),
        compile=not (arguments.no_compile or quick),
        compile_seconds=arguments.compile_seconds,
        patience=arguments.wait,
    )
    field = contestants()

    def step_row(workload: Workload) -> Callable[[Apart], dict[str, Any]]:
        return lambda apart: run_row(workload, field, settings, apart)

    rows: dict[str, Callable[[Apart], dict[str, Any]]] = {
        w.name: step_row(w)
        for w in (quick_workloads() if quick else workloads())
        if arguments.device in w.devices
    }
    counts = QUICK_HOST_COUNTS if quick else host.COUNTS
    rows[host.NAME] = lambda _apart: host.run(*_host_pair(field, settings), settings, counts)
    if arguments.device == "cpu" and not quick:
        rows[pools.NAME] = lambda _apart: pools.run(5, 30, settings.patience)
    wanted = [word.lower() for word in arguments.only or [""]]
    return {n: m for n, m in rows.items() if any(word in n.lower() for word in wanted)}


def _host_pair(field: list[Contestant], settings: Settings) -> tuple[Contestant, Contestant]:
    fused = next(c for c in field if c.name == TORCH_FUSED)
    mine = next(c for c in field if c.family == "ours" and c.available(settings.device)[0])
    return mine, fused


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
