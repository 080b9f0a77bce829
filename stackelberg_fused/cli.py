"""`python -m stackelberg_fused COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "doctor": ("stackelberg_fused.doctor", "what is here, what is missing and what to do about it"),
    "verify": (
        "stackelberg_fused.verify",
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
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; only its own module is imported, so that `doctor` works where others cannot."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m stackelberg_fused")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, help_text) in COMMANDS.items():
        sub = subparsers.add_parser(name, help=help_text, description=help_text)
        if argv[:1] == [name]:
            implementation = importlib.import_module(module)
            implementation.add_arguments(sub)
            sub.set_defaults(run=implementation.run)
    args = parser.parse_args(argv)
    return args.run(args)
