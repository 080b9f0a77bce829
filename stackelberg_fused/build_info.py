"""What setup.py wrote about the native modules, and what follows from it. Nothing but the standard library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def build_info() -> dict[str, Any]:
    """What setup.py wrote about the build of the native modules; empty if it never ran."""
    try:
        return json.loads(Path(__file__).with_name("_build_info.json").read_text())
    except (OSError, ValueError):
        return {}


def driver_runs(cudart: int, driver: int) -> bool:
    """Whether a driver can run a runtime linked statically: any minor of the same major does."""
    return driver // 1000 >= cudart // 1000


def covers(archs: list[str], capability: tuple[int, int]) -> bool:
    """Whether code built for ``archs`` ("sm_90", "compute_120", ...) loads on a GPU."""
    for arch in archs:
        kind, _, digits = arch.partition("_")
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return False
