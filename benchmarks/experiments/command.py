"""``python -m stackelberg_fused experiment NAME``: the command line of the experiments."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from ...cli import positive

EXPERIMENTS = {
    "quadratic": ("quadratic", "Quadratic", "stronger structure: steps to a solution by ratio"),
    "nonconvex": ("quadratic", "Nonconvex", "the same for an f that oscillates while Phi does not"),
    "rates": ("rates", "Rates", "convergence rates under gradient noise, beside the theory's"),
    "digits": (
        "training",
        "Digits",
        "digits: every ratio at its own best rate, and all at one rate",
    ),
    "language": ("training", "Language", "the same for a small GPT"),
    "neurons": (
        "neurons",
        "Neurons",
        "neurons that find their places: one tuned rate, or two",
    ),
    "curvature": ("sharpness", "Sharpness", "curvature of f and of Phi along training"),
    "cartpole": ("cartpole", "CartPole", "deep Q-learning: steps to balance a pole"),
    "actor": ("actor", "ActorCritic", "actor-critic: one launch, or three Adams and averages"),
    "precision": ("precision", "Precision", "every way to store weights and state beside float32"),
    "gaussians": (
        "gaussians",
        "Gaussians",
        "a photograph in 2-D Gaussians: one rate, or rates by kind",
    ),
    "kinds": ("kinds", "Kinds", "a small GPT: one tuned rate, or rates by kind of parameter"),
    "finetune": (
        "finetune",
        "Finetune",
        "new head, trained body: in and out of distribution",
    ),
    "cost": ("cost", "Cost", "time of an alternating step beside a simultaneous one"),
}

# as the committed results say
HOW_LONG = """Two busy cores took some ten minutes at most; language, neurons, actor,
kinds and finetune took 40 to 80, cartpole two hours. An experiment that was
interrupted goes on where it was."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    width = max(map(len, EXPERIMENTS))
    listing = "\n".join(f"  {name:{width}}  {text}" for name, (_, _, text) in EXPERIMENTS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{parser.description}\n\nNAME is one of:\n{listing}\n\n{HOW_LONG}"
    add("name", choices=EXPERIMENTS, metavar="NAME", help="the experiment, see above")
    add(
        "--quick",
        action="store_true",
        help="a few seconds: shows whether everything works, not what comes out",
    )
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for NAME.json and NAME.png (default runs/experiments)",
    )
    add(
        "--threads",
        type=positive(int),
        metavar="N",
        help="torch.set_num_threads (default: as torch chooses)",
    )
    add(
        "--jobs",
        type=positive(int),
        metavar="N",
        default=1,
        help="number of runs at a time, each in a process with one thread (default 1)",
    )
    add("--redraw", type=Path, metavar="JSON", help="only print and plot the result in this file")


def run(arguments: argparse.Namespace) -> int:
    """Run an experiment, or continue it; return 1 if it contradicts known results."""
    # `--help` must need none of these
    import torch
    from rich.console import Console

    from . import runner
    from .experiment import require

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    console = Console()
    module, name, _ = EXPERIMENTS[arguments.name]
    experiment_class = getattr(importlib.import_module(f".{module}", __package__), name)
    require(experiment_class, computes=arguments.redraw is None)
    if arguments.redraw:
        runner.redraw(
            experiment_class, arguments.redraw, arguments.out or Path("runs/redraw"), console
        )
        return 0
    folder = arguments.out or Path("runs/experiments") / ("quick" if arguments.quick else "")
    try:
        return runner.run(experiment_class(arguments.quick), folder, console, arguments.jobs)
    except KeyboardInterrupt:
        console.print("interrupted: the same command continues from here")
        return 130
