"""Memory that a launch may reach: regions of the host's memory, by address, and shared memory of each block.

An access has to lie in one region and to be aligned to its size (sections 6.4.1 and 8.2). Regions are single buffers,
not allocations, so that a step from one buffer into its neighbour is found. Bytes that nothing has written yet are
known where the region says so; what is loaded from them is undefined.
"""

from __future__ import annotations

import bisect
import ctypes
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .lanes import Fault, Mask

Addresses = NDArray[np.uint64]
Bytes = NDArray[np.uint8]

# where blocks' shared memory lies among the addresses that checks compare; no host has memory there
SHARED_BASE = 1 << 60


@dataclass(eq=False)
class Region:
    """A buffer.

    Attributes:
        name: what it holds, for messages.
        address: its first byte.
        data: its bytes.
        is_writable: kernels may store to it.
        written: bytes that hold something; None: all do.
        spoiled: bytes to which kernels have stored something undefined; None: none.
        spoiled_by: an instruction that did so.
    """

    name: str
    address: int
    data: Bytes
    is_writable: bool = True
    written: Mask | None = None
    spoiled: Mask | None = None
    spoiled_by: object = None

    @property
    def end(self) -> int:
        return self.address + len(self.data)

    def __repr__(self) -> str:
        return f"{self.name} [{len(self.data)} bytes at {self.address:#x}]"


@dataclass
class Memory:
    """The regions of global memory that a kernel may reach. They do not overlap."""

    regions: list[Region] = field(default_factory=list)

    def add(
        self,
        name: str,
        address: int,
        nbytes: int,
        *,
        is_writable: bool = True,
        is_written: bool = True,
    ) -> Region:
        """Let kernels reach `nbytes` bytes of the host's memory; the caller keeps it alive.

        Raises:
            ValueError: it overlaps another region.
        """
        data = np.ctypeslib.as_array(
            ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (nbytes,)
        )
        region = Region(
            name, address, data, is_writable, None if is_written else np.zeros(nbytes, np.bool_)
        )
        at = bisect.bisect(self.regions, address, key=lambda r: r.address)
        neighbours = self.regions[max(at - 1, 0) : at + 1]
        if clash := [r for r in neighbours if r.address < region.end and address < r.end]:
            raise ValueError(f"{region} overlaps {clash[0]}")
        self.regions.insert(at, region)
        return region

    def add_array(self, name: str, array: NDArray[np.generic], **options: bool) -> Region:
        """As `add`, the memory of a contiguous array."""
        return self.add(name, array.ctypes.data, array.nbytes, **options)

    def check_defined(self) -> None:
        """Refuse what is undefined in global memory when a launch is over: the host, or the next launch, may read it.

        Raises:
            Fault: something undefined was stored, and nothing has been stored there since.
        """
        for region in self.regions:
            if region.spoiled is not None and region.spoiled.any():
                byte = int(np.flatnonzero(region.spoiled)[0])
                raise Fault(
                    f"{region.spoiled_by} stores what is undefined to byte {byte} of {region}"
                )

    def find(self, addresses: Addresses, size: int) -> list[tuple[Region, NDArray[np.intp] | None]]:
        """The regions that these accesses of `size` bytes lie in, each with their indices (None: all).

        Raises:
            Fault: one of them lies in no region.
        """
        lowest, highest = int(addresses.min()), int(addresses.max())
        first = self._region_at(lowest)
        if first is not None and highest + size <= first.end:
            return [(first, None)]
        starts = np.array([region.address for region in self.regions], np.uint64)
        numbers = np.searchsorted(starts, addresses, "right").astype(np.int64) - 1
        found = []
        for number in np.unique(numbers):
            inside = np.flatnonzero(numbers == number)
            farthest = int(addresses[inside].max())
            if number < 0 or farthest + size > self.regions[number].end:
                raise Fault(f"{size} bytes at {farthest:#x} are in no buffer{self._near(farthest)}")
            found.append((self.regions[number], inside))
        return found

    def _region_at(self, address: int) -> Region | None:
        at = bisect.bisect(self.regions, address, key=lambda r: r.address) - 1
        return self.regions[at] if at >= 0 else None

    def _near(self, address: int) -> str:
        before = self._region_at(address)
        return (
            "" if before is None else f"; {address - before.end} bytes behind the end of {before}"
        )


class SharedMemory:
    """The shared memory of all blocks of a launch. Nothing has written it when a block begins."""

    def __init__(self, blocks: int, nbytes: int) -> None:
        # blocks apart by whole lines, so that no access reaches from one into the next
        self._stride = -(-nbytes // 256) * 256
        self._nbytes = nbytes
        length = blocks * self._stride
        # what a load would find where nothing was written: neither zero nor a small number
        self.region = Region("shared memory", SHARED_BASE, np.full(length, 0xAB, np.uint8))
        self.region.written = np.zeros(length, np.bool_)

    def addresses(
        self, offsets: NDArray[np.uint32], blocks: NDArray[np.int64], size: int
    ) -> Addresses:
        """Where these offsets of blocks lie.

        Raises:
            Fault: an access reaches beyond the block's shared memory.
        """
        farthest = int(offsets.max())
        if farthest + size > self._nbytes:
            raise Fault(f"{size} bytes at {farthest} of {self._nbytes} bytes of shared memory")
        return (offsets.astype(np.int64) + blocks * self._stride + SHARED_BASE).astype(np.uint64)


def check_alignment(addresses: Addresses, size: int) -> None:
    """Refuse addresses that are no multiples of the access's size, that of a whole vector (section 6.4.1).

    Raises:
        Fault: one of them is not.
    """
    misaligned = addresses % np.uint64(size) != 0
    if misaligned.any():
        raise Fault(f"{size} bytes at {int(addresses[misaligned][0]):#x}: not aligned")
