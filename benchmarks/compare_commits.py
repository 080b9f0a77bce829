"""The times of our CPU steps in two checkouts, interleaved.

    python -m stackelberg_fused.benchmarks.compare_commits BEFORE AFTER

A process for each checkout imports `stackelberg_fused` from there, with the checkout's `.venv/bin/python` if it has
one, and uses the public API only: an old checkout does not need this file, only its built native modules. In each
round, every process takes one sample, in a new order. A second process of BEFORE is the control: its ratio to the first
shows how far a ratio is from 1 by chance.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import host, machine, rows
from .clean_process import CleanProcess, CleanProcessFailed
from .contestant import find_contestant
from .formatting import duration
from .ours import ours_by_backend
from .preparation import SEED, PreparedContestant, gradient_sets
from .timing import Action, interleave, quantile, quantiles, rounded
from .workloads import Workload

BEFORE, AFTER, CONTROL = "before", "after", "control"


def compared_workloads() -> dict[str, Workload]:
    """Return the workloads by name: CPU rows of the update alone and the host's, each also with new gradients."""
    on_cpu = [w for w in rows.workloads() if "cpu" in w.devices]
    steps = [w for w in on_cpu if not (w.new_gradients or w.training_step or w.states)]
    steps += [host.tiny_workload(count, "kept") for count in host.COUNTS]
    return {
        w.name + suffix: replace(w, name=w.name + suffix, new_gradients=bool(suffix))
        for w in steps
        for suffix in ("", rows.NEW_GRADIENTS)
    }


# of the current row, in a checkout's process
_action: list[Action] = []


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request: prepare a row's step, or take one sample of it.

    {"row", "threads"}: {"package": the library's folder}; {}: {"ns": nanoseconds per step}.
    """
    if "row" not in request:
        return {"ns": _action[0].sample()}
    import torch

    import stackelberg_fused as sf

    _action.clear()
    gc.disable()
    gc.collect()
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    workload = compared_workloads()[request["row"]]
    contestant = find_contestant(ours_by_backend(), "ours cpu")
    prepared = PreparedContestant.build(contestant, workload, workload.start("cpu", SEED))
    _action.append(prepared.action("cpu", *gradient_sets(workload, "cpu", SEED)))
    _action[0].calibrate()
    return {"package": str(Path(sf.__file__).resolve().parent)}


@dataclass
class RemoteAction:
    """Our step on a row, timed in a checkout's process."""

    checkout: Path
    process: CleanProcess
    request: dict[str, Any]

    def calibrate(self) -> None:
        """Prepare the step, and check that the library is the checkout's."""
        package = Path(self.process.ask(self.request)["package"])
        if package.parent != self.checkout.resolve():
            raise CleanProcessFailed(f"{self.checkout}: imported {package} instead")

    def sample(self) -> float:
        """Return nanoseconds per step, the mean of one sample."""
        return self.process.ask({})["ns"]


def _process(checkout: Path) -> CleanProcess:
    own = checkout / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else None
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    return CleanProcess("compare_commits", python=python, environment=environment)


def _lines(samples: dict[str, list[float]]) -> Iterator[str]:
    for name, times in samples.items():
        low, median, high = map(duration, quantiles(times).values())
        line = f"  {name:<8}{median:>9} ({low} .. {high})"
        if name != BEFORE:
            ratios = [a / b for a, b in zip(times, samples[BEFORE], strict=True)]
            p20, p50, p80 = (quantile(ratios, q) for q in (0.2, 0.5, 0.8))
            line += f"  ratio {p50:.3f} ({p20:.3f} .. {p80:.3f})"
        yield line


def main(argv: list[str] | None = None) -> int:
    """Compare row by row; print medians, p20 to p80 and ratios; return 2 if a checkout cannot be measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    for name in (BEFORE, AFTER):
        add(name, type=Path, help="folder of a checkout with built native modules")
    add("--only", metavar="ROW", default="", help="only rows whose name contains ROW")
    add("--rounds", type=int, default=60, help="most rounds per row (default 60)")
    add("--seconds", type=float, default=20.0, help="most seconds of rounds per row (default 20)")
    add("--threads", type=int, help="torch.set_num_threads (default: as torch chooses)")
    add("--out", type=Path, metavar="JSON", help="also write every sample to this file")
    options = parser.parse_args(argv)
    checkouts = {BEFORE: options.before, AFTER: options.after, CONTROL: options.before}
    commits = {name: machine.commit(folder) for name, folder in checkouts.items()}
    print(f"{machine.cpu_model()}; before: {commits[BEFORE]}, after: {commits[AFTER]}")
    print("median (p20 .. p80); ratio: time relative to before in the same round; < 1 is faster")
    result: dict[str, Any] = {**machine.provenance("cpu"), "commits": commits, "rows": {}}
    with contextlib.ExitStack() as stack:
        processes = {n: stack.enter_context(_process(path)) for n, path in checkouts.items()}
        for row in (n for n in compared_workloads() if options.only.lower() in n.lower()):
            request = {"row": row, "threads": options.threads}
            actions = {n: RemoteAction(checkouts[n], p, request) for n, p in processes.items()}
            try:
                samples = interleave(actions, options.rounds, options.seconds, SEED)
            except CleanProcessFailed as error:
                print(f"compare_commits: {row}: {error}", file=sys.stderr)
                return 2
            print(f"\n{row}, {len(samples[BEFORE])} rounds", *_lines(samples), sep="\n", flush=True)
            result["rows"][row] = {name: rounded(times) for name, times in samples.items()}
            if options.out:
                options.out.write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
