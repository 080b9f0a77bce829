"""Happens-before (section 8): what each thread knows to have happened when it does something.

Order comes from barriers of a block, from barriers of a warp, and from a release that another thread's acquire
observes: a fence before an atomic operation on one side, a fence behind it on the other, or atom.acq_rel. What was
ordered before a release is ordered before what follows the acquire (causality order, section 8).

A thread's time is how many barriers its block has passed, and how many releases it has made itself. So knowledge is
small: barriers by block, and releases by the few threads that make them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .accesses import Access
from .kernel import Fence, WarpBarrier
from .lanes import Lanes
from .warp import WarpOperation

WIDE = ("gpu", "sys")  # scopes that reach other blocks


@dataclass(frozen=True)
class Knowledge:
    """What is known to have happened.

    Attributes:
        barriers: by block, how many of its barriers: all that its threads did before them.
        releases: by thread, how many of its releases: all that it did before them.
    """

    barriers: dict[int, int] = field(default_factory=dict)
    releases: dict[int, int] = field(default_factory=dict)

    def joined(self, other: Knowledge) -> Knowledge:
        if other is self or not (other.barriers or other.releases):
            return self
        return Knowledge(
            _larger(self.barriers, other.barriers), _larger(self.releases, other.releases)
        )


def _larger(a: dict[int, int], b: dict[int, int]) -> dict[int, int]:
    return {key: max(a.get(key, 0), b.get(key, 0)) for key in {**a, **b}}


NOTHING = Knowledge()


@dataclass
class _Observed:
    """What an atomic operation's memory location carries.

    Attributes:
        released: known to who released to it, by a release of its own.
        by_others: known to threads that executed a fence.sc before a barrier that the writer passed after them: the
            order of all fence.sc orders it before a fence.sc that follows the reader's.
    """

    released: Knowledge = NOTHING
    by_others: Knowledge = NOTHING


class Order:
    """Follows a launch (an observer of it) and keeps what threads know.

    Attributes:
        releases: by thread: how many releases it has made.
        warp_syncs: by thread: how many instructions of its whole warp that order memory it has executed.
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
        self.version = np.zeros(threads, np.int64)  # by thread: which of `_known`
        # what a thread's atomic operations have read, which takes effect at its next fence
        self._read: dict[int, Knowledge] = {}
        # likewise for any fence.sc that follows, also of other threads behind a barrier
        self._read_by_any: dict[int, Knowledge] = {}
        # what was known at a thread's last fence, which its next atomic operations release
        self._fenced: dict[int, tuple[int, int]] = {}
        self._fenced_version = np.full(threads, -1, np.int64)
        self._fenced_releases = np.zeros(threads, np.int64)
        self._fenced_by_others: dict[int, Knowledge] = {}  # by block
        self._locations: dict[int, _Observed] = {}

    def knowledge(self, version: int) -> Knowledge:
        """What a thread knew whose `version` was this."""
        return self._known[version]

    def barrier(self, block: int) -> None:
        """All threads of a block pass a barrier: each knows what any of them knew, and did."""
        self.barriers[block] += 1
        first = block * self._block_threads
        members = slice(first, first + self._block_threads)
        known = NOTHING
        for version in np.unique(self.version[members]):
            known = known.joined(self._known[version])
        own = Knowledge({block: int(self.barriers[block])})
        self.version[members] = self._add(known.joined(own))
        # what some thread's atomic operation has read: for fences of all
        read = [self._read_by_any.pop(t) for t in self._threads_of(block, self._read_by_any)]
        for one in read:
            for thread in range(first, first + self._block_threads):
                self._read_by_any[thread] = self._read_by_any.get(thread, NOTHING).joined(one)
        by_others = self._fenced_by_others.get(block, NOTHING)
        fenced = np.flatnonzero(self._fenced_version[members] >= 0) + first
        for thread in fenced[np.unique(self._fenced_version[fenced], return_index=True)[1]]:
            by_others = by_others.joined(self._released(int(thread)))
        self._fenced_by_others[block] = by_others

    def _threads_of(self, block: int, found: dict[int, Knowledge]) -> list[int]:
        return [thread for thread in found if thread // self._block_threads == block]

    def warps(
        self, operation: WarpOperation | WarpBarrier, lanes: Lanes, active: NDArray[np.intp]
    ) -> None:
        """Whole warps execute an instruction together."""
        if self._shuffles_order or isinstance(operation, WarpBarrier):
            self.warp_syncs[lanes.thread[active]] += 1

    def fence(self, fence: Fence, lanes: Lanes, active: NDArray[np.intp]) -> None:
        """Threads execute a fence: it completes acquires, and prepares releases."""
        if fence.scope not in WIDE:
            return
        threads = lanes.thread[active]
        for source in (self._read, self._read_by_any) if fence.is_sequential else (self._read,):
            for thread in [t for t in source if t in set(threads.tolist())] if source else ():
                self._learn(thread, source.pop(thread))
        self.releases[threads] += 1
        self._fenced_releases[threads] = self.releases[threads]
        self._fenced_version[threads] = self.version[threads]

    def access(self, access: Access, lanes: Lanes) -> None:
        """Threads access memory; only atomic operations order anything."""
        if access.kind != "atomic":
            return
        for lane, address in zip(access.lanes, access.addresses, strict=True):
            self._atomic(int(lanes.thread[lane]), int(address), access.order, access.scope)

    def _atomic(self, thread: int, address: int, order: str, scope: str) -> None:
        if scope not in WIDE:
            return
        location = self._locations.setdefault(address, _Observed())
        # the later operation reads the earlier one's value: acquire
        if order in ("acquire", "acq_rel"):
            self._learn(thread, location.released)
        else:
            self._read[thread] = self._read.get(thread, NOTHING).joined(location.released)
        any_fence = location.released.joined(location.by_others)
        self._read_by_any[thread] = self._read_by_any.get(thread, NOTHING).joined(any_fence)
        # release; one read-modify-write after another continues the releases before it
        if order in ("release", "acq_rel"):
            self.releases[thread] += 1
            own = Knowledge({}, {thread: int(self.releases[thread])})
            location.released = location.released.joined(self._known[self.version[thread]]).joined(
                own
            )
        elif self._fenced_version[thread] >= 0:
            location.released = location.released.joined(self._released(thread))
        location.by_others = location.by_others.joined(
            self._fenced_by_others.get(thread // self._block_threads, NOTHING)
        )

    def _released(self, thread: int) -> Knowledge:
        """What an atomic operation of this thread releases by the fence before it."""
        own = Knowledge({}, {thread: int(self._fenced_releases[thread])})
        return self._known[self._fenced_version[thread]].joined(own)

    def _learn(self, thread: int, known: Knowledge) -> None:
        self.version[thread] = self._add(self._known[self.version[thread]].joined(known))

    def _add(self, known: Knowledge) -> int:
        self._known.append(known)
        return len(self._known) - 1
