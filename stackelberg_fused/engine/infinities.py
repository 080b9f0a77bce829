"""What the statistics launches found of infinities: one answer for all tables, and for all ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout.scaling import Search, move
from ..layout.statistics import Statistics
from ..memory.sharding import Ranks
from .launch_unit import LaunchUnit, Staged

_CPU = torch.device("cpu")


class Infinities:
    """Concludes searches for infinities in the gradients of an engine's tables."""

    def __init__(self, units: Sequence[LaunchUnit]) -> None:
        self._units = units
        self._is_sharded = any(unit.gradients.sharded for unit in units)

    def agree(
        self, staged: list[Staged | None], search: Search, statistics: Statistics | None
    ) -> list[Staged | None]:
        """Have all tables and ranks agree on what the statistics launches found, and note it.

        Args:
            statistics: of the step. Those that hold shards of one model have them in common (`ShardedNorms`), so that
                they need not be asked again.

        Returns:
            What is to be launched: where the host counts steps, nothing if there are infinities. Where the device does,
            the launch itself reads what was found.
        """
        units, ready = self._units, [each for each in staged if each is not None]
        parts = [found for each in ready if (found := each.found_inf) is not None]
        if self._is_sharded and not parts and statistics is not None:
            parts = [statistics.not_finite]  # others may have gradients
        total = found_by_any(parts, search.ranks, units[0].table.device if units else _CPU)
        if parts or search.ranks:
            search.found.append(total)
        on_host = [unit for unit in units if unit.table.counts is None]
        if len(on_host) < len(units):
            for unit, each in zip(units, staged, strict=True):
                if each is not None and unit.table.counts is not None:
                    unit.conclude_anew(each)
        if on_host and bool(total):
            for unit in on_host:
                unit.skipped = True
            staged = [
                None if unit.skipped else each for unit, each in zip(units, staged, strict=True)
            ]
        return staged


def found_by_any(parts: Sequence[Tensor], ranks: Sequence[Ranks], device: torch.device) -> Tensor:
    """Make one answer of those of all tables and of all ranks, and give it to each table.

    Args:
        parts: float32 [] each: not 0 where a gradient of the table is not finite; there may be none.
        ranks: those that have to come to the same answer.
        device: of the answer where there are no tables.

    Returns:
        float32 []: not 0 where anybody found an infinity.
    """
    total = parts[0].clone() if parts else torch.zeros((), device=device)
    for part in parts[1:]:
        total += move(part, total.device)
    for group, device_type in ranks:
        _reduce(total, group, device_type)
    if ranks or len(parts) > 1:
        for part in parts:
            part.copy_(total)
    return total


def _reduce(found: Tensor, group: Any, device_type: str) -> None:
    """Set `found` to the largest of all ranks of a group."""
    distributed = sys.modules["torch.distributed"]  # who has a group has imported it
    # where parameters are offloaded to the host, a group may reduce on the GPU alone
    reduced = found if found.device.type == device_type else found.to(device_type)
    distributed.all_reduce(reduced, op=distributed.ReduceOp.MAX, group=group)
    if reduced is not found:
        found.copy_(reduced)
