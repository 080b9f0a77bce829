"""Text for durations, verdicts and loads."""

from __future__ import annotations


def duration(ns: float) -> str:
    """Format nanoseconds with three significant digits and a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns / size < 1000 else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"


def verdict(met: bool | None) -> str:
    """Say whether a target was met; None means that the machine was not quiet."""
    return {True: "met", False: "MISSED", None: "not judged: noise"}[met]


def load_summary(load: dict[str, float]) -> str:
    """Say how much of the machine others used, and whether it was quiet."""
    quiet = "" if load["quiet"] else "NOT QUIET, no figure to quote: "
    return (
        f"{quiet}meanwhile other processes used {load['other_processes_cpus']:.2f} CPUs,"
        f" other guests {load['stolen_cpus']:.2f}"
    )
