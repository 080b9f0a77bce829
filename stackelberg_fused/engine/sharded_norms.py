"""Norms of gradients of which each rank holds a shard: exact sums of squares, added up over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.base import conclude_with_torch
from ..layout.part import Part
from ..layout.slot import Slot
from ..layout.statistics import ClipLimits, Statistics
from ..memory.flattened import is_cut
from ..memory.sharding import place_in_mesh, refuse_uncommon, sum_over_ranks
from ..numerics.exact_sum import INFINITIES
from .across_rebuilds import AcrossRebuilds
from .launch_unit import LaunchUnit, Staged
from .rank_agreement import refuse_different_ranks_once


def refuse_flattened(slots: Iterable[Slot]) -> None:
    """Raise ValueError, naming it, for a piece of what FSDP1 flattened: it does not say where the others are."""
    for slot in slots:
        if is_cut(slot.param):
            raise ValueError(
                f"{slot.name}: max_grad_norm would measure the part that FullyShardedDataParallel has left on each "
                "rank: clip with the model's clip_grad_norm_() before the step"
            )


def refuse_meshes(slots: Iterable[Slot]) -> None:
    """Raise ValueError for meshes of which some rank would not learn all sums, and clip to another norm."""
    refuse_uncommon(
        (place_in_mesh(slot.param)[0] for slot in slots),
        what="max_grad_norm is of parameters",
        consequence="clip to another norm",
        each="an optimizer of its own",
    )


class _OfMesh:
    """The parameters that are laid out over one mesh, or over none.

    Attributes:
        mesh: a DeviceMesh; None for plain tensors, which are counted as they are here.
    """

    def __init__(self, mesh: Any, units: Sequence[LaunchUnit]) -> None:
        self.mesh = mesh
        self._counts = []
        for unit in units:
            places = [place_in_mesh(slot.param) for slot in unit.table.slots]
            self._counts.append(np.array([here and of == mesh for of, here in places], bool))
        self._parts: dict[tuple[int, str | None], Part | None] = {}

    def part(self, index: int, unit: LaunchUnit, role: str | None) -> Part | None:
        """The slots of a unit and a role that count here; None where all of them do."""
        if (index, role) not in self._parts:
            span, counts = unit.table.spans[role], self._counts[index]
            here = counts[span.first_slot : span.last_slot]
            part = Part(unit.table, np.flatnonzero(here) + span.first_slot)
            self._parts[index, role] = None if here.all() else part
        return self._parts[index, role]


class ShardedNorms:
    """The norms of an optimizer's gradients, over all ranks that hold a part of its parameters.

    The sums of squares are exact (numerics/exact_sum.py), so that norms and factors have the same bits on every rank,
    and however the parameters are sharded. Copies of a shard count once.

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
        self._units, self._groups, self._across_rebuilds = units, groups, across_rebuilds
        meshes: list[Any] = []
        for unit in units:
            for slot in unit.table.slots:
                mesh, _ = place_in_mesh(slot.param)
                if mesh not in meshes:
                    meshes.append(mesh)
        self._of_mesh = [_OfMesh(mesh, units) for mesh in meshes]
        # kernels have no room for squares of float64 numbers, which another backend may have added up
        self._concludes = all(unit.backend.reads_memory for unit in units)

    @classmethod
    def of(
        cls,
        units: Sequence[LaunchUnit],
        groups: list[dict[str, Any]],
        across_rebuilds: AcrossRebuilds,
    ) -> ShardedNorms | None:
        """Those of some units; None where no parameter is sharded."""
        if not any(unit.gradients.sharded for unit in units):
            return None
        return cls(units, groups, across_rebuilds)

    def agree(self, limits: ClipLimits | None) -> None:
        """Compare ranks before they first wait for each other, and after groups were added.

        Raises:
            ValueError, RuntimeError: see `refuse_different_ranks`.
        """
        refuse_different_ranks_once(self._groups, {"max_grad_norm": limits}, self._across_rebuilds)

    def measure(
        self, staged: Sequence[Staged | None], limits: ClipLimits, role: str | None
    ) -> tuple[int, Statistics]:
        """Statistics of the gradients about to be stepped; the launches made, and those of one of the units.

        Every rank has to call this, whether or not it has a gradient. One sum over the ranks of each mesh also tells
        all of them what any found of infinities, in tensors that are not sharded as well.
        """
        pairs = list(zip(self._units, staged, strict=True))
        parts = [
            unit.table.statistics_of(unit.table.spans[role])
            if ready is None
            else ready.launch.needed_statistics
            for unit, ready in pairs
        ]
        launches, sums = 0, [torch.zeros_like(parts[0].digits) for _ in self._of_mesh]
        for of_mesh, here in zip(self._of_mesh, sums, strict=True):
            for i, ((unit, ready), part) in enumerate(zip(pairs, parts, strict=True)):
                if ready is not None:
                    launches += unit.measure(ready, limits, of_mesh.part(i, unit, role))
                    here += part.digits.to(here.device)
        total = self._added_up(sums)
        for (unit, ready), part in zip(pairs, parts, strict=True):
            part.digits.copy_(total)
            if ready is None:
                part.conclude_digits(part.digits, limits)
            elif self._concludes:
                launches += unit.backend.conclude(ready.launch, limits)
            else:
                conclude_with_torch(ready.launch, limits)
        return launches, parts[0]

    def _added_up(self, sums: Sequence[Tensor]) -> Tensor:
        """The sums of all meshes and ranks, int64 [2, WORDS]; counts of what is not finite are only 0 or not.

        Args:
            sums: what this rank has of each mesh; written to.
        """
        bad = torch.stack([here[:, INFINITIES:] for here in sums]).sum(0)
        total = torch.zeros_like(sums[0])
        for of_mesh, here in zip(self._of_mesh, sums, strict=True):
            if of_mesh.mesh is not None:
                # whatever this rank knows, of other meshes too: they may be of other ranks
                here[:, INFINITIES:] = bad.sign()
                sum_over_ranks(of_mesh.mesh, here)
                bad = bad + here[:, INFINITIES:]
            total += here
        total[:, INFINITIES:] = bad.sign()
        return total
