"""Happens-before (section 8): what each thread knows to have happened when it does something.

Order comes from barriers of a block, from barriers of a warp, and from a release pattern that another thread's acquire
pattern observes (section 8.9.4): a release operation, or a fence and a strong write behind it, on one side; an acquire
operation, or a strong read and a fence behind it, on the other. What was ordered before a release is ordered before
what follows the acquire (causality order, section 8.9.5).

Besides, all fence.sc of two threads are ordered (section 8.9.2), in the direction that causality has. So where thread A
executes a fence.sc, then its block passes a barrier, then another thread of the block writes a flag, and a thread reads
the flag, passes a barrier of its block, and then thread B executes a fence.sc, all that A did before its fence is known
to B after it. That is true of no other fence.

A thread's time is how many barriers its block has passed, and how many releases it has made itself. So knowledge is
small: barriers by block, and releases by the few threads that make them. Where this is not exact, it knows less than
the ISA promises: fences and operations of the scope of a block order nothing here, a barrier of a warp passes on what
its threads know but not what they did, an acquire operation is not itself behind what it acquires, and a release ends
with the next store of its thread to the same place.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .accesses import Access
from .kernel import Fence, WarpBarrier
from .lanes import Lanes
from .warp import WarpOperation

WIDE = ("gpu", "sys")  # scopes that reach other blocks
LARGEST = 16  # bytes of a strong access


@dataclass(frozen=True)
class Knowledge:
    """What is known to have happened.

    Attributes:
        barriers: by block, how many of its barriers: all that its threads did before them.
        releases: by thread, how many of its releases: all that it did before them.
        writes: by chain of strong writes, how many of them: these alone (observation order is part of causality order).
    """

    barriers: dict[int, int] = field(default_factory=dict)
    releases: dict[int, int] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=dict)

    def joined(self, other: Knowledge) -> Knowledge:
        """What either of them holds."""
        if other is self or other is NOTHING:
            return self
        if self is NOTHING:
            return other
        return Knowledge(
            _larger(self.barriers, other.barriers),
            _larger(self.releases, other.releases),
            _larger(self.writes, other.writes),
        )


def _larger(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
    if not b or a is b:
        return a
    found = dict(a)
    for key, value in b.items():
        if found.get(key, 0) < value:
            found[key] = value
    return found


NOTHING = Knowledge()


@dataclass
class _Observed:
    """What a chain of strong writes of a location, one after another, carries to the next strong read of it.

    Attributes:
        chain: its number.
        size: bytes of the accesses.
        writes: how many there are.
        released: known to those who wrote it with a release pattern.
        sequential: known at each fence.sc that precedes the write in causality order, also those of other threads.
    """

    chain: int
    size: int
    writes: int = 0
    released: Knowledge = NOTHING
    sequential: Knowledge = NOTHING


class _Fences:
    """What was known at the last fence of each thread."""

    def __init__(self, threads: int) -> None:
        self._version = np.full(threads, -1, np.int64)
        self._releases = np.zeros(threads, np.int64)

    def note(
        self,
        threads: NDArray[np.int64],
        version: NDArray[np.int64],
        releases: NDArray[np.int64],
    ) -> None:
        self._version[threads], self._releases[threads] = version, releases

    def known(self, thread: int, versions: list[Knowledge]) -> Knowledge:
        """That, and what the thread itself had done."""
        if self._version[thread] < 0:
            return NOTHING
        own = Knowledge({}, {thread: int(self._releases[thread])})
        return versions[self._version[thread]].joined(own)

    def known_to_some(self, members: slice, versions: list[Knowledge]) -> Knowledge:
        """What was known at a fence of some of these threads."""
        fenced = np.flatnonzero(self._version[members] >= 0) + members.start
        own = Knowledge({}, {int(t): int(self._releases[t]) for t in fenced})
        for version in np.unique(self._version[fenced]):
            own = own.joined(versions[version])
        return own


class Order:
    """Follows a launch (an observer of it) and keeps what threads know.

    Attributes:
        barriers: by block: how many barriers it has passed.
        releases: by thread: how many releases it has made.
        warp_syncs: by thread: how many instructions of its whole warp that order memory it has executed.
        version: by thread: which `knowledge` is its own.
    """

    def __init__(self, threads: int, block_threads: int, *, shuffles_order: bool = False) -> None:
        """Begin a launch.

        Args:
            threads: of the launch.
            block_threads: of a block.
            shuffles_order: shfl, vote and redux order a warp's accesses, which the ISA promises only of bar.warp.sync.
        """
        self._block_threads = block_threads
        self._shuffles_order = shuffles_order
        self.barriers = np.zeros(-(-threads // block_threads), np.int64)
        self.releases = np.zeros(threads, np.int64)
        self.warp_syncs = np.zeros(threads, np.int64)
        self._known: list[Knowledge] = [NOTHING]
        self.version = np.zeros(threads, np.int64)
        # what a thread's strong reads have observed, which it learns by its next fence
        self._observed = np.zeros(threads, np.int64)
        # what strong reads that precede it in causality order have observed of fence.sc, until its next fence.sc
        self._observed_sequential = np.zeros(threads, np.int64)
        self._fences, self._sequential_fences = _Fences(threads), _Fences(threads)
        # by block: what was known at the fence.sc of its threads before its last barrier
        self._sequential_of_block: dict[int, Knowledge] = {}
        self._blocks_with_new_fences: set[int] = set()
        self._locations: dict[int, _Observed] = {}
        self._chains = 0
        self._sorted_locations: NDArray[np.int64] | None = None

    def knowledge(self, version: int) -> Knowledge:
        """What a thread knew whose `version` was this."""
        return self._known[version]

    def barrier(self, block: int) -> None:
        """All threads of a block pass a barrier: each knows what any of them knew, and did."""
        self.barriers[block] += 1
        first = block * self._block_threads
        members = slice(first, first + self._block_threads)
        known = self._joined(np.unique(self.version[members]))
        # what they did themselves before it follows from the barrier
        releases = {t: n for t, n in known.releases.items() if not first <= t < members.stop}
        self.version[members] = self._add(
            Knowledge({**known.barriers, block: int(self.barriers[block])}, releases, known.writes)
        )
        self._observed_sequential[members] = self._add(
            self._joined(np.unique(self._observed_sequential[members]))
        )
        if block in self._blocks_with_new_fences:
            self._blocks_with_new_fences.discard(block)
            self._sequential_of_block[block] = self._sequential_of_block.get(block, NOTHING).joined(
                self._sequential_fences.known_to_some(members, self._known)
            )

    def warps(
        self, operation: WarpOperation | WarpBarrier, lanes: Lanes, active: NDArray[np.intp]
    ) -> None:
        """Whole warps execute an instruction together."""
        if not (self._shuffles_order or isinstance(operation, WarpBarrier)):
            return
        threads = lanes.thread[active]
        self.warp_syncs[threads] += 1
        for versions in (self.version, self._observed_sequential):
            numbers = versions[threads].reshape(-1, 32)
            for warp in np.flatnonzero((numbers != numbers[:, :1]).any(1)):
                joined = self._joined(np.unique(numbers[warp]))
                versions[threads[32 * warp : 32 * warp + 32]] = self._add(joined)

    def fence(self, fence: Fence, lanes: Lanes, active: NDArray[np.intp]) -> None:
        """Threads execute a fence: it completes acquire patterns, and begins release patterns."""
        if fence.scope not in WIDE or not len(active):
            return
        threads = lanes.thread[active]
        sources = [self.version[threads], self._observed[threads]]
        if fence.is_sequential:
            sources.append(self._observed_sequential[threads])
        kinds, of_thread = np.unique(np.stack(sources), axis=1, return_inverse=True)
        joined = [self._add(self._joined(kind)) for kind in kinds.T]
        self.version[threads] = np.array(joined)[of_thread.ravel()]
        self._observed[threads] = 0
        self.releases[threads] += 1
        now = threads, self.version[threads], self.releases[threads]
        self._fences.note(*now)
        if fence.is_sequential:
            self._observed_sequential[threads] = 0
            self._sequential_fences.note(*now)
            self._blocks_with_new_fences.update(np.unique(lanes.block[active]).tolist())

    def access(self, access: Access, lanes: Lanes) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Threads access memory; only strong operations (section 8.2) order anything.

        Returns:
            By lane, the chain that the access writes to, and how many writes of it precede; chain 0 for none.
        """
        is_strong = access.order != "weak" and access.scope in WIDE
        if access.kind != "load" and not (is_strong and access.kind == "atomic"):
            self._forget(access.addresses.astype(np.int64), access.size)
        chains = np.zeros((2, len(access.lanes)), np.int32)
        if not is_strong:
            return chains[0], chains[1]
        # red, which gives nothing, and has no acquire, is not taken to observe anything (section 9.7.13, red)
        observes = access.kind != "store" and access.instruction.base != "red"
        for i, (lane, address) in enumerate(zip(access.lanes, access.addresses, strict=True)):
            thread = int(lanes.thread[lane])
            location = self._location(int(address), access.size)
            if observes:
                self._read(thread, location, access.order)
            if access.kind != "load":
                chains[:, i] = location.chain, location.writes
                self._write(thread, location, access.order)
        return chains[0], chains[1]

    def _location(self, address: int, size: int) -> _Observed:
        location = self._locations.get(address)
        if location is None or location.size != size:
            self._forget(np.array([address]), size)
            self._chains += 1
            location = self._locations[address] = _Observed(self._chains, size)
            self._sorted_locations = None
        return location

    def _forget(self, addresses: NDArray[np.int64], size: int) -> None:
        """Other stores hide what was written before: who reads them observes no release."""
        if not self._locations:
            return
        if self._sorted_locations is None:
            self._sorted_locations = np.array(sorted(self._locations), np.int64)
        low, high = addresses.min() - LARGEST + 1, addresses.max() + size
        start, end = np.searchsorted(self._sorted_locations, (low, high))
        for at in self._sorted_locations[start:end].tolist():
            last = at + self._locations[at].size
            if ((addresses < last) & (addresses + size > at)).any():
                del self._locations[at]
                self._sorted_locations = None

    def _read(self, thread: int, location: _Observed, order: str) -> None:
        if location.writes:
            seen = Knowledge({}, {}, {location.chain: location.writes})
            self.version[thread] = self._with(self.version[thread], seen)
        if order in ("acquire", "acq_rel"):
            self.version[thread] = self._with(self.version[thread], location.released)
        self._observed[thread] = self._with(self._observed[thread], location.released)
        self._observed_sequential[thread] = self._with(
            self._observed_sequential[thread], location.sequential
        )

    def _write(self, thread: int, location: _Observed, order: str) -> None:
        """Writes of atomic operations leave what they read observable (observation order, section 8.8.2)."""
        if order in ("release", "acq_rel"):
            self.releases[thread] += 1
            own = Knowledge({}, {thread: int(self.releases[thread])})
            released = self._known[self.version[thread]].joined(own)
        else:
            released = self._fences.known(thread, self._known)
        location.writes += 1
        location.released = location.released.joined(released)
        of_block = self._sequential_of_block.get(thread // self._block_threads, NOTHING)
        sequential = self._sequential_fences.known(thread, self._known).joined(of_block)
        location.sequential = location.sequential.joined(sequential)

    def _joined(self, versions: Iterable[int]) -> Knowledge:
        known = NOTHING
        for version in versions:
            known = known.joined(self._known[version])
        return known

    def _with(self, version: int, known: Knowledge) -> int:
        return self._add(self._known[version].joined(known))

    def _add(self, known: Knowledge) -> int:
        if known is NOTHING:
            return 0
        if known is not self._known[-1]:
            self._known.append(known)
        return len(self._known) - 1
