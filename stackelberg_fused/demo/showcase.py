"""What `python -m stackelberg_fused demo` does: a task on which rates by part pay, and one on which they do not."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from . import checkpoint, command
from .gaussian_runs import GaussianRuns, mean_and_range
from .recording import LogdirError, log_photograph, prepare
from .report import FEWEST_STEPS, percent
from .train import logdir_option
from .train import run as train

LANGUAGE = (
    "steps",
    "ratios",
    "backend",
    "device",
    "threads",
)  # options that the language task takes


def run(args: argparse.Namespace) -> int:
    """Run both tasks, or go on with them; return the exit code as `train.run` does."""
    console = Console()
    how_to_resume = ["demo", "--out", str(args.out), *logdir_option(args)]
    how_to_resume += ["--quick"] * args.quick
    torch.set_num_threads(args.threads or 1)
    try:
        prepare(args.logdir)
        folder = args.out / "gaussians"
        if args.resume and not folder.exists():
            raise checkpoint.CheckpointError(f"there is nothing to resume in {args.out}")
        folder.mkdir(parents=True, exist_ok=True)
        gaussians = GaussianRuns(folder, args.quick, args.resume)
        status = _gaussians(gaussians, console)
        if args.logdir is not None:
            log_photograph(gaussians, args.logdir / "gaussians")
    except (LogdirError, checkpoint.CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if status:
        _say_how_to_resume(how_to_resume, console)
        return status
    console.print()
    status = train(_language(args), how_to_resume)
    if status == 0:
        console.print()
        _report(console, gaussians, args.out / "language")
    return status


def _gaussians(runs: GaussianRuns, console: Console) -> int:
    size, missing = runs.size, runs.missing()
    console.print(
        f"A photograph in {size.last} Gaussians, {size.height} x {size.width} pixels, {size.steps} steps a run\n"
        f"{len(missing)} runs: one rate, or rates by kind of parameter; seeds {', '.join(map(str, runs.seeds))}",
        highlight=False,
    )
    stop = checkpoint.StopRequest()
    try:
        with stop:
            runs.train(stop, console)
    except KeyboardInterrupt:  # the second Ctrl-C
        stop.signal = signal.SIGINT
    if stop.signal is not None:
        console.print(f"Stopped by {stop.signal.name}.")
        return 128 + stop.signal
    try:
        runs.draw()
    except ImportError:
        console.print("gaussians.png needs matplotlib: pip install it, then --resume draws it.")
    return 0


def _say_how_to_resume(arguments: list[str], console: Console) -> None:
    console.print("To go on with the runs that are missing:")
    line = shlex.join([sys.executable, "-m", "stackelberg_fused", *arguments, "--resume"])
    console.print(f"  {line}", soft_wrap=True, highlight=False)


def _language(args: argparse.Namespace) -> argparse.Namespace:
    """Return the arguments with which the language task is trained."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    found = parser.parse_args(["--task", "language", "--out", str(args.out / "language")])
    found.resume = args.resume and (found.out / "checkpoint.pt").exists()
    found.quick = args.quick or None
    found.logdir = args.logdir and args.logdir / "language"
    for name in LANGUAGE:
        setattr(found, name, getattr(args, name))
    return found


def _report(console: Console, gaussians: GaussianRuns, language: Path) -> None:
    """Print the table of both tasks, and what to look at."""
    result = json.loads((language / "result.json").read_text())
    table = Table(title="One rate for all, or rates by part; equal steps", title_justify="left")
    for heading in ("task", "one rate", "rates by part", "gain or loss"):
        table.add_column(heading)
    gains, is_trial = gaussians.gains(), gaussians.size.steps < FEWEST_STEPS
    table.add_row(
        f"photograph, dB\nmore is better;\n{len(gains)} seeds",
        mean_and_range(gaussians.psnr("one rate"), ".2f"),
        f"{mean_and_range(gaussians.psnr('by kind'), '.2f')}\nby kind",
        "" if is_trial else mean_and_range(gains, "+.2f"),
        end_section=True,
    )
    table.add_row("language, nats/byte\nless is better;\none seed", *_language_row(result))
    console.print(table)
    for line in remarks(gains, is_trial):
        console.print(line, highlight=False)
    console.print("To look at:")
    for path in (gaussians.picture, language / "loss.png", language / "report.html"):
        if path.exists():
            console.print(f"  {path}", highlight=False, soft_wrap=True)


def remarks(gains: list[float], is_trial: bool) -> list[str]:
    """Return what the photograph's seeds show, by their differences in dB."""
    if is_trial:
        return ["These steps show that it runs: too few to compare anything."]
    better = sum(gain > 0 for gain in gains)
    return [
        f"Photograph: rates by kind are better with {better} of {len(gains)} seeds (second line: least and most). "
        "All rates are the best that were found by tuning both sides alike: docs/results.md."
    ]


def _language_row(result: dict[str, Any]) -> tuple[str, str, str]:
    """Return the cells of the language task: its control, its best ratio, and the difference between them."""
    control, *others = result["runs"]
    losses = [run["validation"][-1]["loss"] for run in (control, *others)]
    finite = [(loss, run["name"]) for loss, run in zip(losses[1:], others, strict=True) if loss]
    first = f"{losses[0]:.4f}" if losses[0] else "diverged"
    if not finite:
        return first, "diverged", ""
    best, name = min(finite)
    is_trial = result["settings"]["steps"] < FEWEST_STEPS
    change = percent(best / losses[0] - 1, "+.1f") if losses[0] and not is_trial else ""
    return first, f"{best:.4f}\n{name}, best of {len(others)}", change
