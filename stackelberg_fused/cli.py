"""`stackelberg COMMAND`, or `python -m stackelberg_fused COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import math
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ._version import __version__

SIGPIPE = (
    13  # what ends other programs whose output nobody reads any more; Windows has no such signal
)
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
    "demo": (
        "stackelberg_fused.demo.showcase_command",
        "a task on which rates by part pay, and one on which they do not",
    ),
    "train": (
        "stackelberg_fused.demo.command",
        "one task: a small GPT, or digits, at several head/body ratios",
    ),
    "report": (
        "stackelberg_fused.report.command",
        "one HTML page of a run: curves, rates, norms, settings",
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
        The exit status: of the command, 2 where it misses something, 141 where nobody reads its output any more.
    """
    try:
        try:
            return _run(list(sys.argv[1:] if argv is None else argv), prog)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_stdout_closed():
            raise
        return 128 + SIGPIPE


def _is_stdout_closed() -> bool:
    """Tell whether the reader of the output, as `head`, is gone; if so nothing is written to it any more."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError):  # it is no file
        return False
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(descriptor, 0)
        if not poll.poll(0):
            return False
    # Python flushes once more when it ends
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _run(argv: list[str], prog: str) -> int:
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        if argv[:1] == [name]:
            try:
                implementation = importlib.import_module(module)
            except ModuleNotFoundError as error:
                return _missing(name, error)
            implementation.add_arguments(sub)
            sub.set_defaults(run=implementation.run)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    try:
        status: int = args.run(args)
    except ModuleNotFoundError as error:
        return _missing(args.command, error)
    return status


def _missing(command: str, error: ModuleNotFoundError) -> int:
    """Say what a command needs; raises where that is a module of this package, which nobody can install."""
    name = (error.name or str(error)).partition(".")[0]
    if name == __package__:
        raise error
    package = {"sklearn": "scikit-learn"}.get(name, name)
    print(
        f"error: {command} needs {name}, which is not installed for {sys.executable}: pip install {package}",
        file=sys.stderr,
    )
    return 2
