"""`stackelberg report DIR`: writes the page of a run. It needs no torch and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .page import NAME, write
from .run_folder import NoRunError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder that a run was recorded in"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"the page (default: DIR/{NAME})")


def run(args: argparse.Namespace) -> int:
    """Write the page and print its path; return 2 where there is no run."""
    try:
        print(write(args.folder, args.out))
    except (NoRunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
