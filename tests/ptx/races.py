"""Races: two accesses of a location by two threads, at least one of which writes, with nothing to order them.

Accesses are logged with what their thread knew, and examined after the launch: each against the last store before it,
and each store against the loads since then. The order of section 8 does not depend on who came first by chance, so that
a race is found in any interleaving in which both accesses happen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .accesses import Access
from .kernel import Fence, WarpBarrier
from .lanes import WARP, Lanes
from .memory import SHARED_BASE, Memory
from .order import Order
from .warp import WarpOperation

if TYPE_CHECKING:
    from collections.abc import Iterable

LOAD, STORE, ATOMIC = range(3)
KINDS = {"load": LOAD, "store": STORE, "atomic": ATOMIC}


@dataclass(frozen=True)
class Race:
    """Two accesses that nothing orders.

    Attributes:
        first, second: the instructions.
        where: the buffer's name.
        is_benign: both store what is there already.
    """

    first: str
    second: str
    where: str
    is_benign: bool

    def __str__(self) -> str:
        kind = "equal stores" if self.is_benign else "race"
        return f"{kind} on {self.where}: {self.first} and {self.second}"


class RaceDetector:
    """An observer of one launch; ask for `races()` when it is over."""

    def __init__(
        self, threads: int, block_threads: int, memory: Memory, *, shuffles_order: bool = False
    ) -> None:
        """Watch a launch, as `Order`; `memory` gives names to locations."""
        self._order = Order(threads, block_threads, shuffles_order=shuffles_order)
        self._block_threads = block_threads
        self._memory = memory
        self._log: list[tuple[NDArray[np.int64], ...]] = []
        self._instructions: list[str] = []

    def barrier(self, block: int) -> None:
        self._order.barrier(block)

    def fence(self, fence: Fence, lanes: Lanes, active: NDArray[np.intp]) -> None:
        self._order.fence(fence, lanes, active)

    def warps(
        self, operation: WarpOperation | WarpBarrier, lanes: Lanes, active: NDArray[np.intp]
    ) -> None:
        self._order.warps(operation, lanes, active)

    def access(self, access: Access, lanes: Lanes) -> None:
        """Log an access, with what its threads know before it."""
        order, threads = self._order, lanes.thread[access.lanes]
        # an atomic operation of a narrow scope is one only for its block
        kind = np.full(len(threads), KINDS[access.kind])
        changes = (
            np.ones(len(threads), np.int64)
            if access.changes is None
            else access.changes.astype(np.int64)
        )
        self._log.append(
            (
                access.addresses.astype(np.int64),
                np.full(len(threads), access.size),
                threads,
                kind,
                changes,
                order.barriers[lanes.block[access.lanes]].copy(),
                order.releases[threads].copy(),
                order.warp_syncs[threads].copy(),
                order.version[threads].copy(),
                np.full(len(threads), len(self._instructions)),
            )
        )
        self._instructions.append(str(access.instruction))
        order.access(access, lanes)

    def races(self) -> Counter[Race]:
        """The races found, with the number of locations of each."""
        found: Counter[Race] = Counter()
        if not self._log:
            return found
        log = [np.concatenate(columns) for columns in zip(*self._log, strict=True)]
        size = log[1]
        # by locations of 4 bytes where all accesses are of whole ones, else by bytes
        for group, grain in self._by_grain(log[0], size):
            rows = _expanded([column[group] for column in log], grain)
            self._examine(rows, grain, found)
        return found

    def _by_grain(
        self, address: NDArray[np.int64], size: NDArray[np.int64]
    ) -> Iterable[tuple[NDArray[np.bool_], int]]:
        starts = np.array(
            sorted([*(r.address for r in self._memory.regions), SHARED_BASE]), np.int64
        )
        region = np.searchsorted(starts, address, "right")
        is_narrow = np.isin(region, np.unique(region[size < 4]))
        yield is_narrow, 1
        yield ~is_narrow, 4

    def _examine(
        self, rows: dict[str, NDArray[np.int64]], grain: int, found: Counter[Race]
    ) -> None:
        """Find races among rows sorted by location and time."""
        location, thread, kind = rows["location"], rows["thread"], rows["kind"]
        if not len(location):
            return
        starts = np.flatnonzero(np.r_[True, location[1:] != location[:-1]])
        # locations of one thread, or without a store, cannot race
        several = np.maximum.reduceat(thread, starts) != np.minimum.reduceat(thread, starts)
        stored = np.maximum.reduceat(kind, starts) > LOAD
        lengths = np.diff(np.r_[starts, len(location)])
        kept = np.repeat(several & stored, lengths)
        rows = {name: column[kept] for name, column in rows.items()}
        if not len(rows["location"]):
            return
        first, second = _pairs(rows["location"], rows["kind"])
        for a, b in self._unordered(rows, first, second):
            where = self._name(int(rows["location"][a]) * grain)
            benign = rows["kind"][a] == rows["kind"][b] == STORE and not rows["changes"][b]
            names = (self._instructions[rows["instruction"][k]] for k in (a, b))
            found[Race(*names, where, bool(benign))] += 1

    def _unordered(
        self, rows: dict[str, NDArray[np.int64]], first: NDArray[np.intp], second: NDArray[np.intp]
    ) -> Iterable[tuple[int, int]]:
        """Of pairs of accesses in the order of time, those that nothing orders."""
        thread, barriers, kind = rows["thread"], rows["barriers"], rows["kind"]
        block = thread // self._block_threads
        same_block = block[first] == block[second]
        ordered = (thread[first] == thread[second]) | (
            same_block & (barriers[first] < barriers[second])
        )
        warp = thread % self._block_threads // WARP
        same_warp = same_block & (warp[first] == warp[second])
        ordered |= same_warp & (rows["warp_syncs"][first] < rows["warp_syncs"][second])
        ordered |= (kind[first] == ATOMIC) & (kind[second] == ATOMIC)
        for a, b in zip(first[~ordered], second[~ordered], strict=True):
            known = self._order.knowledge(int(rows["version"][b]))
            if known.barriers.get(int(block[a]), 0) > barriers[a]:
                continue
            if known.releases.get(int(thread[a]), 0) > rows["releases"][a]:
                continue
            yield int(a), int(b)

    def _name(self, address: int) -> str:
        if address >= SHARED_BASE:
            return "shared memory"
        region = self._memory.find(np.array([address], np.uint64), 1)[0][0]
        return region.name


# of the log, in their order
COLUMNS = (
    *("address", "size", "thread", "kind", "changes"),
    *("barriers", "releases", "warp_syncs", "version", "instruction"),
)


def _expanded(log: list[NDArray[np.int64]], grain: int) -> dict[str, NDArray[np.int64]]:
    """One row for each location of each access, sorted by location and then by time."""
    counts = np.maximum(log[1] // grain, 1)
    rows = {name: np.repeat(column, counts) for name, column in zip(COLUMNS, log, strict=True)}
    within = np.arange(len(rows["size"])) - np.repeat(np.cumsum(counts) - counts, counts)
    rows["location"] = rows["address"] // grain + within
    order = np.argsort(rows["location"], kind="stable")
    return {name: column[order] for name, column in rows.items()}


def _pairs(
    location: NDArray[np.int64], kind: NDArray[np.int64]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs to examine: an access and the last store before it, a store and the loads since that."""
    count = np.arange(len(location))
    is_new = np.r_[True, location[1:] != location[:-1]]
    start = np.maximum.accumulate(np.where(is_new, count, 0))
    # the last store at or before each row, of the same location
    last = np.maximum.accumulate(np.where(kind > LOAD, count, -1))
    before = np.r_[-1, last[:-1]]
    before = np.where(before >= start, before, -1)
    has_store = before >= 0
    first, second = [before[has_store]], [count[has_store]]
    # loads between a store and the next one: to that next one
    following = _next_store(location, kind)
    loads = (kind == LOAD) & (following >= 0)
    first.append(count[loads])
    second.append(following[loads])
    return np.concatenate(first), np.concatenate(second)


def _next_store(location: NDArray[np.int64], kind: NDArray[np.int64]) -> NDArray[np.intp]:
    """The next store behind each row, of the same location; -1 if there is none."""
    n = len(location)
    index = np.where(kind > LOAD, np.arange(n), n)
    following = np.minimum.accumulate(index[::-1])[::-1]
    clipped = np.minimum(following, n - 1)
    return np.where((following < n) & (location[clipped] == location), following, -1)
