"""The command line of the experiments."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

import torch
from rich.console import Console

from ...cli import positive
from . import experiment

EXPERIMENTS = {
    "quadratic": ("quadratic", "Quadratic", "stronger structure: steps to a solution by ratio"),
    "nonconvex": ("quadratic", "Nonconvex", "the same where f oscillates and Phi does not"),
    "rates": ("rates", "Rates", "convergence rates under gradient noise beside the theory's"),
    "digits": (
        "training",
        "Digits",
        "digits: every ratio at its own best rate, and at one for all",
    ),
    "language": ("training", "Language", "the same for a small GPT; hours"),
    "curvature": ("sharpness", "Sharpness", "curvature of f and of Phi along training"),
    "cartpole": ("cartpole", "CartPole", "deep Q-learning: steps to balance a pole; an hour"),
    "precision": ("precision", "Precision", "every way to store weights and state beside float32"),
    "cost": ("cost", "Cost", "time of an alternating step beside a simultaneous one"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    listing = "; ".join(f"{name}: {what}" for name, (_, _, what) in EXPERIMENTS.items())
    add("name", choices=EXPERIMENTS, metavar="NAME", help=listing)
    add("--quick", action="store_true", help="a few seconds: does it work, not what comes out")
    add("--out", type=Path, help="folder for NAME.json and NAME.png (default runs/experiments)")
    add("--threads", type=positive(int), help="torch.set_num_threads (default: as torch chooses)")
    add(
        "--jobs",
        type=positive(int),
        default=1,
        help="so many runs at a time, each in a process with one thread (default 1)",
    )
    add("--redraw", type=Path, metavar="JSON", help="only print and draw an earlier result")


def run(arguments: argparse.Namespace) -> int:
    """Run one experiment, or go on with it; 1 where it contradicts what is known."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console()
    module, name, _ = EXPERIMENTS[arguments.name]
    kind = getattr(importlib.import_module(f".{module}", __package__), name)
    experiment.require(kind, computes=arguments.redraw is None)
    if arguments.redraw:
        experiment.redraw(kind, arguments.redraw, arguments.out or Path("runs/redraw"), console)
        return 0
    folder = arguments.out or Path("runs/experiments") / ("quick" if arguments.quick else "")
    try:
        return experiment.run(kind(arguments.quick), folder, console, arguments.jobs)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on with what is there")
        return 130
