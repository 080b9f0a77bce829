"""Contestants in processes of their own: what each can do where nothing else runs or was imported.

Interleaved in one process, each finds the caches and the threads that the others left; torch's own
process never imports ``stackelberg_fused``, so that a pool of ours that slowed it would show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .alone import Alone, AloneFailed
from .timing import quantiles
from .workloads import Workload

if TYPE_CHECKING:
    from .entries import Settings

# so that a slow minute of the machine hits all of them
TURNS = 3


class Apart:
    """One process per contestant, kept from row to row; close it."""

    def __init__(self) -> None:
        self._processes: dict[str, Alone] = {}

    def measure(
        self, names: list[str], workload: Workload, settings: Settings
    ) -> dict[str, dict[str, Any]]:
        """Time the contestants in turns; for each its quantiles, samples and load, or the reason why not."""
        found: dict[str, dict[str, Any]] = {name: {"samples_ns": [], "loads": []} for name in names}
        request = {
            "row": workload.name,
            "device": settings.device,
            "rounds": -(-settings.rounds // TURNS),
            "seconds": settings.seconds / 4 / TURNS,
            "threads": torch.get_num_threads(),
            "patience": settings.patience / TURNS,
        }
        for _ in range(TURNS):
            for name in names:
                mine = found[name]
                if "reason" in mine:
                    continue
                process = self._processes.setdefault(name, Alone())
                try:
                    turn = process.ask(request | {"contestant": name}, request["patience"])
                except AloneFailed as error:
                    found[name] = {"reason": str(error)}
                    continue
                mine["samples_ns"] += turn["samples_ns"]
                mine["loads"].append(turn["load"])
        return {name: _summary(mine) for name, mine in found.items()}

    def close(self) -> None:
        """End every process and wait for it."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _summary(mine: dict[str, Any]) -> dict[str, Any]:
    if "reason" in mine:
        return mine
    loads = mine["loads"]
    load = {key: max(load[key] for load in loads) for key in loads[0]} | {
        "quiet": all(load["quiet"] for load in loads)
    }
    return quantiles(mine["samples_ns"]) | {"samples_ns": mine["samples_ns"], "load": load}
