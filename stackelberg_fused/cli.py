"""`stackelberg COMMAND`, or `python -m stackelberg_fused COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ._version import __version__

COMMANDS = {
    "doctor": (
        "stackelberg_fused.tools.doctor",
        "what is here, what is missing and what to do about it",
    ),
    "verify": (
        "stackelberg_fused.tools.verify",
        "parity of every available backend with the reference, on this machine",
    ),
    "bench": (
        "stackelberg_fused.benchmarks.bench",
        "throughput against torch and other fused optimizers",
    ),
    "train": (
        "stackelberg_fused.demo.train",
        "the demo: a small GPT, or digits, at several head/body ratios",
    ),
    "experiment": (
        "stackelberg_fused.benchmarks.experiments.command",
        "the paper's claims, measured, for and against",
    ),
}


def positive(kind: type) -> Callable[[str], Any]:
    """An argparse type: a number above zero."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


def main(argv: Sequence[str] | None = None, prog: str = "stackelberg") -> int:
    """Run one command; only its own module is imported, so that `doctor` works where others cannot.

    Args:
        argv: the command and its arguments; those of the process if None.
        prog: how usage lines call the program.

    Returns:
        The exit status.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        if argv[:1] == [name]:
            try:
                implementation = importlib.import_module(module)
            except ModuleNotFoundError as error:
                missing = error.name or str(error)
                package = {"sklearn": "scikit-learn"}.get(missing, missing)
                print(
                    f"error: {name} needs {missing}, which is not installed for {sys.executable}: "
                    f"pip install {package}",
                    file=sys.stderr,
                )
                return 2
            implementation.add_arguments(sub)
            sub.set_defaults(run=implementation.run)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    status: int = args.run(args)
    return status
