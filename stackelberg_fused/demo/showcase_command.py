"""`python -m stackelberg_fused demo`: the command line of both tasks, which needs no more than the library does."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..cli import positive
from .command import add_logdir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path("runs/demo"),
        help="output directory (default: runs/demo)",
    )
    add("--resume", action="store_true", help="go on with what is in DIR")
    add_logdir(parser)
    add("--quick", action="store_true", help="tiny models and few steps; takes seconds")
    add("--threads", type=positive(int), help="threads of torch (default: 1)")
    add("--steps", type=positive(int), help="steps of the language task (default: 800)")
    add(
        "--ratios",
        type=positive(float),
        nargs="+",
        metavar="R",
        help="head/body ratios of the language task (default: 3 10 30)",
    )
    add("--backend", help="backend of the language task (default: auto)")
    add("--device", help="device of the language task: cpu or cuda (default: cuda if available)")


def run(args: argparse.Namespace) -> int:
    """Run both tasks; return the exit code of `showcase.run`."""
    from .showcase import run as showcase  # needs rich, which `--help` must not

    return showcase(args)
