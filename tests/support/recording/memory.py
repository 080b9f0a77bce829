"""Who may use which bytes, and when: races, memory that was freed too early, memory that a graph's replays need."""

from __future__ import annotations

import sys
from bisect import bisect_right, insort
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .order import HOST, Bytes, Clock, Moment, Operation, join

if TYPE_CHECKING:
    from .order import Stream
    from .runtime import Graph

_OWN = tuple(
    f"/recording/{name}.py" for name in ("memory", "order", "runtime", "posed_device", "launches")
)
ROUNDED = 512  # bytes, as torch's allocator rounds sizes


def asked_for_by() -> str:
    """The function of the library that asks for memory, or of the test."""
    frame, name = sys._getframe(1), ""
    while frame is not None:
        path = frame.f_code.co_filename.replace("\\", "/")
        if "/stackelberg_fused/" in path and not path.endswith("memory/device_runtime.py"):
            return f"{path.rpartition('/')[2]}:{frame.f_code.co_name}"
        if not name and "/tests/" in path and not path.endswith(_OWN):
            name = f"{path.rpartition('/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return name


class Block:
    """Memory between its allocation and the moment when it is free again.

    Attributes:
        memory: the bytes.
        stream: of its allocation, to which it may be handed out again at once when it is free; None: pinned memory.
        born: how much of that stream's work was enqueued when it was allocated.
        kept_for: other streams that have to be through with it first.
        freed: what is certain to be over when somebody else may have it; None: it is in use.
        graph: from whose private pool it is.
    """

    def __init__(self, name: str, memory: np.ndarray, stream: Stream | None, from_act: int) -> None:
        self.name, self.memory, self.stream, self.from_act = name, memory, stream, from_act
        self.begin = memory.ctypes.data
        self.end = self.begin + memory.nbytes
        self.born = 0 if stream is None else stream.clock.get(stream.number, 0)
        self.kept_for: set[Stream] = set()
        self.freed: Clock | None = None
        self.freed_at: int | None = None
        self.graph: Graph | None = None if stream is None else stream.graph
        self.seen: list[tuple[Bytes, Moment]] = []

    @property
    def is_pinned(self) -> bool:
        return self.stream is None


class Memory:
    """All blocks. What was freed is handed out again as soon as torch's allocator could, the last one first."""

    def __init__(self, report: Callable[[str], None], now: Callable[[], int]) -> None:
        self._report, self._now = report, now
        self._begins: list[int] = []  # where memory begins, ascending
        self._blocks: dict[int, list[Block]] = {}  # that had it, one after the other
        self._free: list[Block] = []
        self.pinned = 0  # blocks of pinned memory that were allocated
        self.in_use = self.most_in_use = 0  # bytes of the GPU

    def allocate(self, nbytes: int, stream: Stream | None) -> Block:
        """A block; of pinned memory without a stream."""
        size = -(-max(nbytes, 1) // ROUNDED) * ROUNDED
        name = f"memory of {asked_for_by()}"
        if stream is None:
            self.pinned += 1
            name = f"pinned block {self.pinned} of {asked_for_by()}"
        memory = None
        for old in reversed(self._free):
            same = old.stream is stream and len(old.memory) == size
            if same and stream is not None and old.graph is stream.graph:
                self._free.remove(old)
                memory = old.memory
                break
        if memory is None:
            memory = np.full(size + ROUNDED, 0xA5, np.uint8)
            shift = -memory.ctypes.data % 256
            memory = memory[shift : shift + size]
        block = Block(name, memory, stream, self._now())
        if block.begin not in self._blocks:
            insort(self._begins, block.begin)
        self._blocks.setdefault(block.begin, []).append(block)
        if stream is not None:
            self.in_use += size
            self.most_in_use = max(self.in_use, self.most_in_use)
        return block

    def free(self, block: Block) -> None:
        """Nobody holds a tensor in this block any more."""
        block.freed_at = self._now()
        stream = block.stream
        if stream is None:
            return  # torch waits for copies from it before it hands it out; a graph's replays are not among these
        self.in_use -= len(block.memory)
        over: Clock = {}
        for each in (stream, *block.kept_for):
            join(over, each.clock)
        block.freed = over
        if block.graph is None:
            for _, moment in block.seen:
                self._check_freed(block, moment)
        if not block.kept_for:
            self._free.append(block)

    def find(self, address: int, act: int) -> Block | None:
        """The block that an address lay in when the host acted."""
        index = bisect_right(self._begins, address) - 1
        if index < 0:
            return None
        for block in reversed(self._blocks[self._begins[index]]):
            if block.from_act <= act:
                return block if address < block.end else None
        return None

    def whole(self, address: int, act: int, writes: bool) -> list[Bytes]:
        """All of the block that an address lies in, from there on."""
        block = self.find(address, act)
        return [] if block is None else [Bytes(address, block.end - address, writes)]

    def used(self, access: Bytes, moment: Moment, operation: Operation | None = None) -> None:
        """Somebody reads or writes bytes: report what that collides with."""
        if access.nbytes <= 0 or access.address == 0:
            return
        act = self._now() if operation is None else operation.asked_at
        block = self.find(access.address, act)
        if block is None:
            self._report(f"{moment.label} uses memory that nobody allocated")
            return
        if operation is not None and operation.graph is not None:
            gone = block.freed_at is not None and block.freed_at < operation.enqueued_at
            if gone and block.graph is not operation.graph:
                self._report(
                    f"{block.name} was freed, and {moment.label} of a graph's replay uses it"
                )
        elif block.freed is not None and block.graph is None:
            self._check_freed(block, moment)
        self._check_born(block, moment)
        self._check_races(block, access, moment)

    def _check_freed(self, block: Block, moment: Moment) -> None:
        assert block.freed is not None
        if moment.actor != HOST and not moment.is_known_by(block.freed):
            self._report(
                f"{block.name} was freed before its stream is through: {moment.label} still uses it, and "
                f"{block.stream} may hand it out again"
            )

    def _check_born(self, block: Block, moment: Moment) -> None:
        stream = block.stream
        if stream is None or moment.actor == HOST or block.graph is not None:
            return
        if moment.clock.get(stream.number, 0) < block.born:
            self._report(
                f"{moment.label} uses {block.name}, which was allocated on {stream}, and does not wait for it: who had "
                "it before may still use it"
            )

    def _check_races(self, block: Block, access: Bytes, moment: Moment) -> None:
        kept = []
        begin, end = access.address, access.address + access.nbytes
        for old, before in block.seen:
            overlaps = old.address < end and begin < old.address + old.nbytes
            collides = overlaps and (old.writes or access.writes)
            ordered = before.is_before(moment)
            if collides and not ordered and not moment.is_before(before):
                self._report(_race(block, old, before, access, moment))
            inside = begin <= old.address and old.address + old.nbytes <= end
            if not (ordered and inside and (access.writes or not old.writes)):
                kept.append((old, before))
        block.seen = [*kept, (access, moment)]


def _race(block: Block, old: Bytes, before: Moment, access: Bytes, moment: Moment) -> str:
    if moment.actor == HOST:
        what = "read" if not old.writes else "write"
        return f"{block.name} is overwritten by the host while {before.label} may still {what} it"
    verbs = ["writes" if each.writes else "reads" for each in (access, old)]
    return (
        f"{moment.label} {verbs[0]} what {before.label} {verbs[1]}, {block.name}, "
        "without an event between them"
    )
