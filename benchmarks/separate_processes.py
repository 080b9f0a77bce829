"""Contestants in separate processes, where no other contestant runs.

Interleaved in one process, each contestant finds the caches and the threads as the others left them. Torch's own
process never imports ``stackelberg_fused``, so that a thread pool of ours that slowed torch would show.
"""

from __future__ import annotations

from typing import Any

import torch

from .clean_process import CleanProcess, CleanProcessFailed
from .preparation import MeasurementSettings
from .timing import quantiles
from .workloads import TORCH_FUSED, Workload

# several, so that a slow minute of the machine hits all contestants
TURNS = 3


class SeparateProcesses:
    """One process for torch's step and one for ours; they serve all rows and must be closed."""

    def __init__(self) -> None:
        self._processes: dict[str, CleanProcess] = {}

    def measure(
        self, names: list[str], workload: Workload, settings: MeasurementSettings
    ) -> dict[str, dict[str, Any]]:
        """Time the contestants in turns; return quantiles, samples and load of each, or the reason why not.

        Turns in which others used the machine do not count, unless all turns were like that.
        """
        turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        failed: dict[str, dict[str, Any]] = {}
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
                if name in failed:
                    continue
                # only torch's process must never have imported our library
                owner = name if name == TORCH_FUSED else "ours"
                process = self._processes.setdefault(owner, CleanProcess())
                try:
                    turns[name].append(
                        process.ask(request | {"contestant": name}, request["patience"])
                    )
                except CleanProcessFailed as error:
                    failed[name] = {"reason": str(error)}
        return {name: failed.get(name) or _summary(turns[name]) for name in names}

    def close(self) -> None:
        """End every process and wait for it."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def __enter__(self) -> SeparateProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    counted = [turn for turn in turns if turn["load"]["quiet"]] or turns
    samples = [ns for turn in counted for ns in turn["samples_ns"]]
    load = {key: max(turn["load"][key] for turn in counted) for key in counted[0]["load"]}
    load["quiet"] = all(turn["load"]["quiet"] for turn in counted)
    return quantiles(samples) | {"samples_ns": samples, "load": load, "turns": len(counted)}
