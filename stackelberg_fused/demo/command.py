"""`python -m stackelberg_fused train`: the command line of the demo, which needs no more than the library does."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from ..cli import positive
from .settings import DEFAULTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command. None has a default here, because `--resume` must know which ones were given."""
    add = parser.add_argument
    add("--task", choices=DEFAULTS, help="training task (default: language)")
    add("--steps", type=positive(int), help="steps of each run (default: language 800, digits 400)")
    add(
        "--ratios",
        type=positive(float),
        nargs="+",
        metavar="R",
        help="head/body ratios (default: 3 10 30)",
    )
    add(
        "--lr",
        type=positive(float),
        help="peak rate of the control; without --body-lr, of all runs (default: tuned)",
    )
    add(
        "--body-lr",
        type=positive(float),
        help="peak rate of the body in the runs with a ratio (default: tuned)",
    )
    add("--head-scale", type=_number, metavar="S", help="factor on the initial head (default: 1)")
    add("--seed", type=int, help="seed of weights and batches (default: 0)")
    add("--out", type=Path, metavar="DIR", help="output directory (default: runs/TASK)")
    add("--resume", action="store_true", help="resume exactly from DIR/checkpoint.pt")
    add_logdir(parser)
    add("--backend", help="backend of StackelbergAdamW (default: auto)")
    add("--device", help="cpu or cuda (default: cuda if available)")
    add(
        "--threads",
        type=positive(int),
        help="threads of torch (default: 1; 2 are faster on idle cores)",
    )
    add(
        "--quick",
        action="store_true",
        default=None,
        help="a tiny model and few steps; takes seconds",
    )


def add_logdir(parser: argparse.ArgumentParser) -> None:
    """Add the option that `train` and `demo` share."""
    parser.add_argument(
        "--logdir",
        type=Path,
        metavar="DIR",
        help="also write losses, rates and norms for TensorBoard there (pip install tensorboard)",
    )


def run(args: argparse.Namespace) -> int:
    """Train and report; return the exit code of `train.run`."""
    from .train import run as train  # needs rich, which `--help` must not

    return train(args)


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is negative or not finite")
    return value
