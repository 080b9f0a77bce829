"""Time limits of processes: one ends a process that hangs, and says nothing of how fast a machine is."""

from __future__ import annotations

import math
import os

FACTOR = 20  # a machine that is busy with other things, slow, emulated or under a debugger
LEAST = 600  # seconds


def patience(alone: float) -> float | None:
    """The limit, in seconds, for a process that takes `alone` seconds where it runs alone.

    The more processes wait for a core, the longer it is; STACKELBERG_TEST_PATIENCE multiplies it, and 0 there lifts it.
    """
    wanted = float(os.environ.get("STACKELBERG_TEST_PATIENCE", "1"))
    if wanted <= 0 or math.isinf(wanted):
        return None
    waiting = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    crowd = max(1.0, waiting / (os.cpu_count() or 1))
    return wanted * crowd * max(LEAST, FACTOR * alone)
