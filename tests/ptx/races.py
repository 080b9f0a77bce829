"""Races: two accesses of a location by two threads, at least one of which writes, with nothing to order them.

Accesses are logged with what their thread knew, and examined after the launch. Which of two accesses came first by
chance does not matter, but what a strong read has observed does: where a thread acquires without asking whether anybody
has released yet, a race is found only in an order of execution in which nobody has.

Accesses that are not ordered are no race if they are morally strong (section 8.7): both strong, of scopes that hold
both threads, of the same bytes. So the writes of a location fall into groups, one after another in time: a usual store
is a group of its own, strong writes of the same bytes are one, within which order is asked for only where scopes do not
hold both threads, and so are stores of what is there already, which are reported, but as equal stores. Each access is
examined with all writes of the group before it and of the one behind it; with those farther away it is ordered if these
are. A strong load may need no order with such a group, and says nothing then about the next one: that is examined too.
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
from .order import WIDE, Order
from .parser import Instruction
from .warp import WarpOperation

if TYPE_CHECKING:
    from collections.abc import Iterable

LOAD, STORE, ATOMIC = range(3)
KINDS = {"load": LOAD, "store": STORE, "atomic": ATOMIC}
WEAK, OF_BLOCK, OF_ALL = range(3)  # strength: strong accesses by their scope

Rows = dict[str, NDArray[np.int64]]
Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Race:
    """Two accesses that nothing orders.

    Attributes:
        first, second: the instructions, in the order of the text.
        where: the buffer's name.
        is_benign: both store what is there already.
    """

    first: Instruction
    second: Instruction
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
        self._instructions: list[Instruction] = []
        self._numbers: dict[int, int] = {}  # of instructions, by their ids

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
        strength = WEAK if access.order == "weak" else OF_ALL if access.scope in WIDE else OF_BLOCK
        changes = np.True_ if access.changes is None else access.changes
        columns = (
            access.addresses.astype(np.int64),
            access.size,
            threads,
            KINDS[access.kind],
            strength,
            changes,
            order.barriers[lanes.block[access.lanes]],
            order.releases[threads],
            order.warp_syncs[threads],
            order.version[threads],
            self._number(access.instruction),
        )
        # addresses take 64 bits; of all others 32 are enough, and there are many
        every = np.zeros(len(threads), np.int32)
        before = [columns[0], *((every + column).astype(np.int32) for column in columns[1:])]
        self._log.append((*before, *order.access(access, lanes)))

    def _number(self, instruction: Instruction) -> int:
        if id(instruction) not in self._numbers:
            self._numbers[id(instruction)] = len(self._instructions)
            self._instructions.append(instruction)  # which also keeps its id
        return self._numbers[id(instruction)]

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
            if len(rows["location"]):
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

    def _examine(self, rows: Rows, grain: int, found: Counter[Race]) -> None:
        """Find races among rows sorted by location and time."""
        first, second = self._unordered(rows, *_pairs(rows, self._block_threads))
        location, kind, number = (rows[name] for name in ("location", "kind", "instruction"))
        benign = (kind[first] == STORE) & (kind[second] == STORE) & (rows["changes"][second] == 0)
        line = np.array([i.line for i in self._instructions])
        swapped = line[number[first]] > line[number[second]]
        one = np.where(swapped, number[second], number[first])
        other = np.where(swapped, number[first], number[second])
        at = np.unique(np.stack([one, other, benign, location[first]]), axis=1)
        for a, b, is_benign, where in at.T.tolist():
            name = self._name(where * grain)
            found[Race(self._instructions[a], self._instructions[b], name, bool(is_benign))] += 1

    def _unordered(self, rows: Rows, first: NDArray[np.intp], second: NDArray[np.intp]) -> Pairs:
        """Of pairs of accesses in the order of time, those that nothing orders, and that are not morally strong."""
        thread, barriers, strength = rows["thread"], rows["barriers"], rows["strength"]
        block = thread // self._block_threads
        same_block = block[first] == block[second]
        ordered = (thread[first] == thread[second]) | (
            same_block & (barriers[first] < barriers[second])
        )
        warp = thread % self._block_threads // WARP
        same_warp = same_block & (warp[first] == warp[second])
        ordered |= same_warp & (rows["warp_syncs"][first] < rows["warp_syncs"][second])
        weaker = np.minimum(strength[first], strength[second])
        same_bytes = (rows["address"][first] == rows["address"][second]) & (
            rows["size"][first] == rows["size"][second]
        )
        ordered |= same_bytes & ((weaker == OF_ALL) | (same_block & (weaker == OF_BLOCK)))
        first, second = first[~ordered], second[~ordered]
        told = np.stack(
            [
                rows["version"][second],
                *(block[first], barriers[first], thread[first], rows["releases"][first]),
                *(rows["chain"][first], rows["place"][first]),
            ]
        )
        kinds, of_pair = np.unique(told, axis=1, return_inverse=True)
        unknown = np.array([not self._knows(*kind) for kind in kinds.T.tolist()], np.bool_)
        unknown = unknown[of_pair.ravel()]
        return first[unknown], second[unknown]

    def _knows(self, version: int, *access: int) -> bool:
        """Whether who has this version knows of an access: of a block and thread at their times, of a chain."""
        known = self._order.knowledge(version)
        block, barriers, thread, releases, chain, place = access
        return (
            known.barriers.get(block, 0) > barriers
            or known.releases.get(thread, 0) > releases
            or (chain > 0 and known.writes.get(chain, 0) > place)
        )

    def _name(self, address: int) -> str:
        if address >= SHARED_BASE:
            return "shared memory"
        region = self._memory.find(np.array([address], np.uint64), 1)[0][0]
        return region.name


# of the log, in their order
COLUMNS = (
    *("address", "size", "thread", "kind", "strength", "changes"),
    *("barriers", "releases", "warp_syncs", "version", "instruction", "chain", "place"),
)


def _expanded(log: list[NDArray[np.int64]], grain: int) -> Rows:
    """One row for each location of each access, sorted by location and then by time, where threads could race."""
    address, size, thread, kind = log[:4]
    counts = np.maximum(size // grain, 1)
    access = np.repeat(np.arange(len(size)), counts)
    within = np.arange(len(access)) - np.repeat(np.cumsum(counts) - counts, counts)
    location = address[access] // grain + within
    order = np.argsort(location, kind="stable")
    location, access = location[order], access[order]
    if len(access):
        # locations of one thread, or without a store, cannot race
        starts = np.flatnonzero(np.r_[True, location[1:] != location[:-1]])
        of = thread[access]
        several = np.maximum.reduceat(of, starts) != np.minimum.reduceat(of, starts)
        stored = np.maximum.reduceat(kind[access], starts) > LOAD
        kept = np.repeat(several & stored, np.diff(np.r_[starts, len(location)]))
        location, access = location[kept], access[kept]
    rows = {name: column[access] for name, column in zip(COLUMNS, log, strict=True)}
    return {**rows, "location": location}


def _pairs(rows: Rows, block_threads: int) -> Pairs:
    """Pairs to examine, the earlier access first."""
    location = rows["location"]
    writes = np.flatnonzero(rows["kind"] > LOAD)
    begins = _begins_group(rows, writes)
    group = np.cumsum(begins) - 1  # of each write
    first_write = np.flatnonzero(begins)  # of each group, among the writes
    size = np.diff(np.r_[first_write, len(writes)])
    where = location[writes[first_write]]  # the location of each group
    # the group of the last write at or before each access, which may be of another location
    last = np.searchsorted(writes, np.arange(len(location)), "right") - 1
    before = np.where(last >= 0, group[last], -1)
    is_write = rows["kind"] > LOAD
    is_strong = rows["strength"] > WEAK
    is_narrow_group = _has_narrow_scopes(rows, writes, first_write, block_threads)
    found = []
    for step in (-1, 0, 1, 2):
        # a write: with the group before its own. A load: with the last one, of which it may be in the middle, and the
        # next one
        chosen = before + step
        near = np.clip(chosen, 0, len(where) - 1)
        takes = {
            -1: is_write | is_strong,
            0: ~is_write | is_narrow_group[near],
            1: ~is_write,
            2: ~is_write & is_strong,
        }[step]
        takes = takes & (chosen == near) & (where[near] == location)
        accesses, groups = np.flatnonzero(takes), near[takes]
        counts = size[groups]
        one = np.repeat(accesses, counts)
        within = np.arange(len(one)) - np.repeat(np.cumsum(counts) - counts, counts)
        found.append((one, writes[np.repeat(first_write[groups], counts) + within]))
    # equal stores of one group
    inside = np.flatnonzero(~begins)
    found.append((writes[inside - 1], writes[inside]))
    one, other = (np.concatenate(part) for part in zip(*found, strict=True))
    return np.minimum(one, other), np.maximum(one, other)


def _begins_group(rows: Rows, writes: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which writes begin a group, see above."""
    now, before = writes[1:], writes[:-1]

    def same(values: NDArray[np.int64]) -> NDArray[np.bool_]:
        return values[now] == values[before]

    are_strong = np.minimum(rows["strength"][now], rows["strength"][before]) > WEAK
    strong = are_strong & same(rows["address"]) & same(rows["size"])
    are_weak = np.maximum(rows["strength"][now], rows["strength"][before]) == WEAK
    equal = are_weak & (rows["changes"][now] == 0)
    return np.r_[True, ~(same(rows["location"]) & (strong | equal))][: len(writes)]


def _has_narrow_scopes(
    rows: Rows, writes: NDArray[np.intp], first_write: NDArray[np.intp], block_threads: int
) -> NDArray[np.bool_]:
    """Groups of strong writes, some of which do not reach the block of another one."""
    if not len(writes):
        return np.zeros(0, np.bool_)
    strength, block = rows["strength"][writes], rows["thread"][writes] // block_threads
    is_narrow = np.minimum.reduceat(strength, first_write) == OF_BLOCK
    one_block = np.minimum.reduceat(block, first_write) == np.maximum.reduceat(block, first_write)
    return is_narrow & ~one_block
