"""Warnings that point at the line of the user's code that led to them."""

from __future__ import annotations

import sys
import warnings


def warn_caller(message: str) -> None:
    """Warn at the nearest line that is neither ours nor torch's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None:
        package = frame.f_globals.get("__name__", "").partition(".")[0]
        if package not in ("stackelberg_fused", "torch"):
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
