"""The runtime that stands in for torch's CUDA calls, and records what would go wrong on a GPU."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from stackelberg_fused.backends import cuda
from stackelberg_fused.backends.device_tables import CapturedUploads
from stackelberg_fused.memory import device_runtime

from .launches import Launches
from .memory import Memory, asked_for_by
from .order import HOST, Bytes, Clock, Event, Moment, Operation, Schedule, Stream, join
from .posed_device import GPU, PosedDevice


class Pinned(np.ndarray):
    """The host's view of a pinned block, which tells when the host writes there."""

    runtime: RecordingRuntime | None = None

    def __array_finalize__(self, source: Any) -> None:
        self.runtime = getattr(source, "runtime", None)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.runtime is not None:
            part = np.ndarray.__getitem__(self, key)
            self.runtime.host_writes(part.ctypes.data, part.nbytes)
        np.ndarray.__setitem__(self, key, value)


class Graph:
    """As torch.cuda.CUDAGraph: what was enqueued while it was captured, to be repeated."""

    def __init__(self, runtime: RecordingRuntime) -> None:
        self._runtime = runtime
        self.operations: list[Operation] = []

    def replay(self) -> None:
        """Have the current stream do all of it again."""
        for operation in self.operations:
            again = copy.copy(operation)
            again.is_done, again.enqueued_at = False, self._runtime.now()
            self._runtime.append(again, self._runtime.current)

    def reads(self, address: int) -> bool:
        """Tell whether a copy that is repeated reads this byte."""
        return any(
            access.address <= address < access.address + access.nbytes
            for operation in self.operations
            if not callable(operation.accesses)
            for access in operation.accesses
        )


class RecordingRuntime:
    """Streams, events, memory and graphs of one GPU, which is none.

    Args:
        schedule: when operations run.

    Attributes:
        reports: what would go wrong, one line each.
        waits: what the host waited for.
        current: stream.
        host: how far the host knows streams to be.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.reports: list[str] = []
        self.waits: list[str] = []
        self.host: Clock = {}
        self._acts = 0
        self.memory = Memory(self.report, self.now)
        self.streams: dict[int, Stream] = {}
        self.default = self.current = self.new_stream()
        self.graphs: list[Graph] = []
        self.posed = PosedDevice(self)

    def report(self, line: str) -> None:
        if line not in self.reports:
            self.reports.append(line)

    def where(self) -> str:
        return asked_for_by()

    def now(self) -> int:
        """The number of an act of the host."""
        self._acts += 1
        return self._acts

    # what the library calls

    def new_stream(self, device: Any = None) -> Stream:
        stream = Stream(self, len(self.streams) + 1)
        self.streams[stream.number] = stream
        return stream

    @contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def on_device(self, device: Any) -> Iterator[None]:
        yield

    @property
    def is_captured(self) -> bool:
        """Some stream is: then these calls are not allowed for any (torch captures in CUDA's mode "global")."""
        return any(stream.graph is not None for stream in self.streams.values())

    def pinned_block(self, nbytes: int) -> tuple[Tensor, np.ndarray]:
        if self.is_captured:
            self.report(f"{self.where()} allocates pinned memory under capture")
        block = self.memory.allocate(nbytes, None)
        handle = block.memory[:nbytes]
        weakref.finalize(handle, self.memory.free, block).atexit = False
        view = handle.view(Pinned)
        view.runtime = self
        return torch.from_numpy(handle), view

    def keep_for(self, tensor: Tensor, stream: Stream) -> None:
        block = self.memory.find(tensor.data_ptr(), self.now())
        if block is not None and stream is not block.stream:
            block.kept_for.add(stream)

    @contextmanager
    def installed(self) -> Iterator[RecordingRuntime]:
        """Within this context the library, and torch, have this GPU."""
        names = {
            "Event": lambda: Event(self),
            "Stream": self.new_stream,
            "current_stream": lambda device=None: self.current,
            "is_capturing": lambda: self.current.graph is not None,
            "keep_for": self.keep_for,
            "on_device": self.on_device,
            "on_stream": self.on_stream,
            "pinned_block": self.pinned_block,
        }
        with (
            self.posed.installed(),
            mock.patch.multiple(device_runtime, **names),
            mock.patch.object(cuda, "_cuda", Launches(self)),
            mock.patch.object(CapturedUploads, "_held_for_replays", []),
        ):
            yield self

    # what the host does

    def is_pinned(self, tensor: Tensor) -> bool:
        block = self.memory.find(tensor.data_ptr(), self.now())
        return block is not None and block.is_pinned

    def host_writes(self, address: int, nbytes: int) -> None:
        """The host writes to pinned memory, now."""
        count = self.host.get(HOST, 0) + 1
        self.host[HOST] = count
        moment = Moment(HOST, count, dict(self.host), "the host")
        block = self.memory.find(address, self.now())
        assert block is not None
        if nbytes and any(graph.reads(address) for graph in self.graphs):
            self.report(f"{block.name} is overwritten by the host, and a graph's replays read it")
        self.memory.used(Bytes(address, nbytes, True), moment)

    def enqueue(
        self,
        name: str,
        run: Callable[[], Any],
        accesses: Sequence[Bytes] | Callable[[], Sequence[Bytes]],
        stream: Stream | None = None,
        after: Operation | None = None,
    ) -> Operation:
        """Have a stream do something after all that it has to do so far."""
        stream = stream or self.current
        operation = Operation(name, run, accesses, self.now(), after)
        if stream.graph is not None:
            operation.graph = stream.graph
            stream.graph.operations.append(operation)
        else:
            self.append(operation, stream)
        return operation

    def append(self, operation: Operation, stream: Stream) -> None:
        stream.append(operation)
        if not callable(operation.accesses):
            for access in operation.accesses:
                block = self.memory.find(access.address, operation.asked_at)
                if block is not None and block.is_pinned:  # the host may write there any time
                    self.memory.used(access, operation.moment, operation)
        self.schedule.enqueued(self, operation)

    def synchronize(self, what: str = "synchronize()", stream: Stream | None = None) -> None:
        """The host waits, for a stream or for all."""
        if self.is_captured:
            self.report(f"{what} by {self.where()} under capture")
            return
        self.waits.append(f"{what} by {self.where()}")
        # those that were last given something to do come first, as far as they may
        for each in [stream] if stream else [*self.streams.values()][::-1]:
            if each.queue:
                self.run_until(each.queue[-1])
            join(self.host, each.clock)

    # what the GPU does

    def ready(self) -> list[Stream]:
        """Streams that may go on."""
        heads = [s.queue[0] for s in self.streams.values() if s.queue]
        return [h.stream for h in heads if h.after is None or h.after.is_done]

    def run_next(self, stream: Stream) -> None:
        operation = stream.queue.popleft()
        is_known = not callable(operation.accesses)
        accesses = operation.accesses if is_known else operation.accesses()
        for access in accesses:
            block = self.memory.find(access.address, operation.asked_at)
            if block is None or not block.is_pinned:
                self.memory.used(access, operation.moment, operation)
        if not self.reports:  # else it may read anything
            operation.run()
        operation.is_done = True

    def run_until(self, operation: Operation) -> None:
        """Have an operation done, and all that has to come before it."""
        while not operation.is_done:
            head = operation.stream.queue[0]
            if head.after is not None and not head.after.is_done:
                self.run_until(head.after)
            else:
                self.run_next(operation.stream)

    # graphs

    @contextmanager
    def captured(self, stream: Stream | None = None) -> Iterator[Graph]:
        """As `torch.cuda.graph`: what is enqueued in this context is repeated by `Graph.replay`, and does not run."""
        self.synchronize()
        graph = Graph(self)
        self.graphs.append(graph)
        with self.on_stream(stream or self.new_stream()):
            self.current.graph = graph
            try:
                yield graph
            finally:
                for each in self.streams.values():
                    if each.graph is graph:
                        each.graph = None

    # for tests

    def tensor(self, values: Tensor) -> Tensor:
        """The values on the GPU."""
        return torch.empty_strided(
            values.shape, values.stride(), dtype=values.dtype, device=GPU
        ).copy_(values.detach())
