"""The build of the native modules, as setup.py recorded it. Imports the standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def build_info() -> dict[str, Any]:
    """Read the record that setup.py left; empty if it never ran."""
    try:
        return json.loads(Path(__file__).with_name("_build_info.json").read_text())
    except (OSError, ValueError):
        return {}


def driver_runs(cudart: int, driver: int) -> bool:
    """Tell whether a driver can run a static runtime: any minor version of the same major, or a newer major, can."""
    return driver // 1000 >= cudart // 1000


def covers(archs: list[str], capability: tuple[int, int]) -> bool:
    """Tell whether code built for ``archs`` ("sm_90", "compute_120", ...) loads on a GPU."""
    for arch in archs:
        kind, _, digits = arch.partition("_")
        major, minor = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
        if kind == "compute" and (major, minor) <= capability:
            return True
    return False
