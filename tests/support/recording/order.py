"""What comes after what: operations on streams, events, and the clocks that tell whether two of them are ordered.

Every stream, and the host, counts what it does. A clock holds how far one of them knows each other one to be: so an
operation is certain to come before another if the clock of that one counts it (vector clocks: Fidge 1988).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime import Graph, RecordingRuntime

HOST = 0
Clock = dict[int, int]


@dataclass(frozen=True)
class Bytes:
    """Bytes from an address on, read or written."""

    address: int
    nbytes: int
    writes: bool


def join(clock: Clock, other: Clock) -> None:
    """Know what the other knows."""
    for actor, count in other.items():
        if clock.get(actor, 0) < count:
            clock[actor] = count


@dataclass(frozen=True)
class Moment:
    """One act of a stream or of the host.

    Attributes:
        actor, count: who, and the how manieth of its acts.
        clock: what it is certain to come after, itself among it.
        label: names it in reports.
    """

    actor: int
    count: int
    clock: Clock
    label: str

    def is_before(self, other: Moment) -> bool:
        return self.is_known_by(other.clock)

    def is_known_by(self, clock: Clock) -> bool:
        return clock.get(self.actor, 0) >= self.count


class Operation:
    """What a stream does once all before it is done.

    Args:
        name: of it, in reports.
        run: does it.
        accesses: the bytes that it reads and writes, asked when it runs where only its tables know them.
        asked_at: the number of the host's act that enqueued or captured it, see `Memory.find`.
        after: another operation that has to be done before.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[], Any],
        accesses: Sequence[Bytes] | Callable[[], Sequence[Bytes]],
        asked_at: int,
        after: Operation | None = None,
    ) -> None:
        self.name, self.run, self.accesses = name, run, accesses
        self.asked_at = self.enqueued_at = asked_at
        self.after = after
        self.is_done = False
        self.graph: Graph | None = None
        self.stream: Stream
        self.moment: Moment


def _nothing() -> None:
    pass


class Stream:
    """As torch.cuda.Stream: a queue of operations."""

    def __init__(self, runtime: RecordingRuntime, number: int) -> None:
        self._runtime = runtime
        self.number = self.cuda_stream = number
        self.device_index = 0
        self.clock: Clock = {}
        self.queue: deque[Operation] = deque()
        self.graph: Graph | None = None  # that is captured from it

    def __repr__(self) -> str:
        return f"stream {self.number}"

    def append(self, operation: Operation) -> None:
        """Have an operation come after all that this stream, and the host, have done."""
        join(self.clock, self._runtime.host)
        count = self.clock.get(self.number, 0) + 1
        self.clock[self.number] = count
        label = f"{operation.name} #{count} on {self}"
        operation.stream = self
        operation.moment = Moment(self.number, count, dict(self.clock), label)
        self.queue.append(operation)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event(self._runtime)
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        if event.graph is not None:
            self.graph = event.graph  # a fork of what is captured
        elif self.graph is not None:
            if event.operation is not None:
                self._runtime.report(f"{self} is captured and waits for work outside of its graph")
        elif event.operation is not None:
            join(self.clock, event.operation.moment.clock)
            self._runtime.enqueue("wait", _nothing, (), self, after=event.operation)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        self._runtime.synchronize("Stream.synchronize()", self)


class Event:
    """As torch.cuda.Event."""

    def __init__(self, runtime: RecordingRuntime) -> None:
        self._runtime = runtime
        self.operation: Operation | None = None
        self.graph: Graph | None = None

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or self._runtime.current
        self.graph = stream.graph
        if self.graph is None:
            self.operation = self._runtime.enqueue("event", _nothing, (), stream)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or self._runtime.current).wait_event(self)

    def query(self) -> bool:
        """Tell whether all before it is done, and let the host know that, where it is."""
        if self._runtime.is_captured:
            self._runtime.report("an event is asked for its state under capture")
        self._runtime.schedule.looked(self._runtime)
        if self.operation is None:
            return True
        if self.operation.is_done:
            join(self._runtime.host, self.operation.moment.clock)
        return self.operation.is_done


class Schedule:
    """When operations run: at once, as a GPU does that is never busy."""

    def enqueued(self, runtime: RecordingRuntime, operation: Operation) -> None:
        runtime.run_until(operation)

    def looked(self, runtime: RecordingRuntime) -> None:
        """The host asks how far a stream is."""


class AsLateAsPossible(Schedule):
    """When the host waits for them, and no other before."""

    def enqueued(self, runtime: RecordingRuntime, operation: Operation) -> None:
        pass


class AtRandom(Schedule):
    """Some now and then, of any stream that may go on."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def enqueued(self, runtime: RecordingRuntime, operation: Operation) -> None:
        self.looked(runtime)

    def looked(self, runtime: RecordingRuntime) -> None:
        for _ in range(self._random.choice((0, 0, 0, 1, 2, 8))):
            ready = runtime.ready()
            if ready:
                runtime.run_next(self._random.choice(ready))
