"""The versions and the hardware that a run is reported with."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from .._version import __version__


def environment() -> dict[str, Any]:
    """Return the versions and the hardware that affect speed and the last bits of a result."""
    return {
        "stackelberg_fused": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
