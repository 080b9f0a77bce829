"""Contestants in processes of their own: what each can do where nothing else runs or was imported.

Interleaved in one process, each finds the caches and the threads that the others left; torch's own
process never imports ``stackelberg_fused``, so that a pool of ours that slowed it would show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .clean_process import Alone, AloneFailed
from .timing import quantiles
from .workloads import TORCH_FUSED, Workload

if TYPE_CHECKING:
    from .preparation import Settings

# so that a slow minute of the machine hits all of them
TURNS = 3


class Apart:
    """One process for torch's step and one for each of ours in turn, kept from row to row; close them."""

    def __init__(self) -> None:
        self._processes: dict[str, Alone] = {}

    def measure(
        self, names: list[str], workload: Workload, settings: Settings
    ) -> dict[str, dict[str, Any]]:
        """Time the contestants in turns; for each its quantiles, samples and load, or the reason why not.

        Turns in which others used the machine do not count, unless all were like that.
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
                # only torch's must never have imported us
                owner = name if name == TORCH_FUSED else "ours"
                process = self._processes.setdefault(owner, Alone())
                try:
                    turns[name].append(
                        process.ask(request | {"contestant": name}, request["patience"])
                    )
                except AloneFailed as error:
                    failed[name] = {"reason": str(error)}
        return {name: failed.get(name) or _summary(turns[name]) for name in names}

    def close(self) -> None:
        """End every process and wait for it."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _summary(turns: list[dict[str, Any]]) -> dict[str, Any]:
    counted = [turn for turn in turns if turn["load"]["quiet"]] or turns
    samples = [ns for turn in counted for ns in turn["samples_ns"]]
    load = {key: max(turn["load"][key] for turn in counted) for key in counted[0]["load"]}
    load["quiet"] = all(turn["load"]["quiet"] for turn in counted)
    return quantiles(samples) | {"samples_ns": samples, "load": load, "turns": len(counted)}
