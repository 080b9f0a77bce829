"""What takes too long for the tests: kills, many steps, many groups, large parameters, full disks, no memory.

    make soak
    make soak SOAK_ARGS="--only kills --only no_room"
    make soak SOAK_ARGS="--only huge"      # never by default: it takes 10 GiB of memory

Each part runs in a process of its own and prints one line; all figures go into one JSON file. Ends with the number of
parts that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from stackelberg_fused.benchmarks.machine import commit, hardware, versions

HERE = Path(__file__).resolve().parent
SUPPORT = HERE.parent / "support"
RESULTS = Path(
    "runs", "soak.json"
)  # ignored by git; the committed ones are in benchmarks/results/reliability
PARTS = ("kills", "long_life", "many_tensors", "many_groups", "no_room", "huge")
LARGE = ("huge",)


def run(part: str, scale: float) -> dict[str, Any]:
    """The figures of a part, or its error."""
    start = time.monotonic()
    command = [sys.executable, str(HERE / f"{part}.py"), str(scale)]
    environment = {**os.environ, "PYTHONPATH": str(SUPPORT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1)}
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return {**found, "failed": lines[-1] if lines else f"ended with {done.returncode}"}
    return {**found, **json.loads(done.stdout.splitlines()[-1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="share of kills, steps and sizes")
    parser.add_argument("--json", type=Path, default=RESULTS)
    given = parser.parse_args()
    parts = given.only or [part for part in PARTS if part not in LARGE]
    # what was found before stays for parts that do not run now
    report = json.loads(given.json.read_text()) if given.json.exists() else {}
    for part in parts:
        found = {**run(part, given.scale), "scale": given.scale, "commit": commit()}
        found |= {"hardware": hardware("cpu"), "versions": versions()}
        report[part] = found
        figures = {k: v for k, v in found.items() if k not in ("hardware", "versions", "commit")}
        print(f"{part}: " + ", ".join(f"{k} {v}" for k, v in figures.items()), flush=True)
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return sum("failed" in report[part] for part in parts)


def report_of_part(figures: dict[str, Any]) -> None:
    """What a part prints at its end: its figures, with the most memory that its process had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**figures, "peak_gib": round(peak, 2)}))


def scale_of_part() -> float:
    return float(sys.argv[1]) if len(sys.argv) > 1 else 1.0


if __name__ == "__main__":
    sys.exit(main())
