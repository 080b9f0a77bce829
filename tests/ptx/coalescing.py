"""Coalescing: how many sectors of 32 bytes the warps of a launch touch, beside the bytes that their threads ask for.

The memory system moves whole sectors. A warp's access whose lanes share sectors costs the sectors, not the bytes; one
whose lanes are far apart costs more bytes than it asks for.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .accesses import Access
from .kernel import Fence, WarpBarrier
from .lanes import Lanes
from .memory import SHARED_BASE
from .parser import Instruction
from .warp import WarpOperation

SECTOR_BYTES = 32


@dataclass
class Traffic:
    """What warps asked for.

    Attributes:
        requests: of a warp, each.
        bytes: that threads asked for; those of one location several times.
        sectors: touched, each once per request.
    """

    requests: int = 0
    bytes: int = 0
    sectors: int = 0

    @property
    def sector_bytes(self) -> int:
        return SECTOR_BYTES * self.sectors

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.requests + other.requests, self.bytes + other.bytes, self.sectors + other.sectors
        )


class Coalescing:
    """An observer of one launch.

    Attributes:
        by_instruction: accesses of global memory, by instruction and kind ("load", "store", "atomic").
    """

    def __init__(self) -> None:
        self.by_instruction: dict[tuple[Instruction, str], Traffic] = defaultdict(Traffic)
        self._sectors: dict[str, list[NDArray[np.int64]]] = defaultdict(list)

    def total(self, *kinds: str) -> Traffic:
        """That of all instructions of these kinds."""
        found = (traffic for (_, kind), traffic in self.by_instruction.items() if kind in kinds)
        return sum(found, Traffic())

    def distinct_sectors(self) -> int:
        """Sectors that are read, and sectors that are written: what moves where caches keep all that is used again."""
        return sum(len(np.unique(np.concatenate(found))) for found in self._sectors.values())

    def access(self, access: Access, lanes: Lanes) -> None:
        if int(access.addresses[0]) >= SHARED_BASE:
            return
        warps = lanes.warp[access.lanes]
        sectors = (access.addresses // np.uint64(SECTOR_BYTES)).astype(np.int64)
        # no access reaches into the next sector: it is aligned to its size, of at most 16 bytes
        touched = np.unique(np.stack([warps, sectors]), axis=1)
        for moved in {"load": ["read"], "store": ["written"], "atomic": ["read", "written"]}[
            access.kind
        ]:
            self._sectors[moved].append(np.unique(sectors))
        traffic = self.by_instruction[access.instruction, access.kind]
        traffic.requests += len(np.unique(warps))
        traffic.bytes += access.size * len(access.lanes)
        traffic.sectors += touched.shape[1]

    def fence(self, fence: Fence, lanes: Lanes, active: NDArray[np.intp]) -> None:
        pass

    def barrier(self, block: int) -> None:
        pass

    def warps(
        self, operation: WarpOperation | WarpBarrier, lanes: Lanes, active: NDArray[np.intp]
    ) -> None:
        pass
