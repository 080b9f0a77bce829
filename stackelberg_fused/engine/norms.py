"""Norms of the gradients of all tables, and of all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..layout.statistics import ClipLimits, Statistics, combine
from .across_rebuilds import AcrossRebuilds
from .launch_unit import LaunchUnit, Staged
from .sharded_norms import ShardedNorms, refuse_flattened, refuse_meshes


class Norms:
    """Has the launches of statistics made, and concludes one result from them.

    Args:
        units: all of the optimizer's.
        groups: its param groups.
        across_rebuilds: remembers whether ranks agreed.
    """

    def __init__(
        self,
        units: Sequence[LaunchUnit],
        groups: list[dict[str, Any]],
        across_rebuilds: AcrossRebuilds,
    ) -> None:
        self._units = units
        self._sharded = ShardedNorms.of(units, groups, across_rebuilds)
        self._were_clipped = False

    def prepare(self, limits: ClipLimits | None) -> None:
        """Raise, before anything is modified, where norms cannot be had; limits are None where nothing is clipped."""
        if limits is not None and not self._were_clipped:
            slots = [slot for unit in self._units for slot in unit.table.slots]
            refuse_flattened(slots)
            refuse_meshes(slots)
            self._were_clipped = True
        if self._sharded is not None:
            self._sharded.agree(limits)

    def measure(
        self, staged: Sequence[Staged | None], limits: ClipLimits, role: str | None
    ) -> tuple[int, Statistics]:
        """Statistics of the gradients about to be stepped; the launches made, and those of one of the units."""
        units = self._units
        if any(unit.skipped for unit in units):
            table = units[0].table
            statistics = table.statistics_of(table.spans[role])
            statistics.unknown(limits)
            return 0, statistics
        if self._sharded is not None:
            return self._sharded.measure(staged, limits, role)
        running = [(unit, ready) for unit, ready in zip(units, staged, strict=True) if ready]
        launches = sum(unit.measure(ready, limits) for unit, ready in running)
        parts = [ready.launch.needed_statistics for _, ready in running]
        if not parts:
            table = units[0].table
            parts = [table.statistics_of(table.spans[role])]
        if len(parts) > 1:
            combine(parts, limits)
        elif not running:
            parts[0].nothing(limits)
        return launches, parts[0]
