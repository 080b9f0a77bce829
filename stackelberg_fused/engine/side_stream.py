"""Streams of a GPU on which parameters are updated while the backward pass goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from ..memory import device_runtime
from .launch_unit import Staged

# updates that run while gradients of later ones are computed; each keeps a batch of gradients alive
IN_FLIGHT = 2


class SideStream:
    """A stream beside that of the backward pass, on one device.

    Gradients that an update reads belong to the stream of the backward pass, or whichever computed them. They are let
    go when these streams were told to wait for the update, two updates later: from there on they may have their memory
    again. So neither the host waits, nor is memory held that depends on how far the host is ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = device_runtime.Stream(device)
        self._in_flight: deque[tuple[device_runtime.Event, set[device_runtime.Stream], Any]] = (
            deque()
        )
        self._sources: list[device_runtime.Stream] = []
        self._held: dict[str, list[device_runtime.Stream]] = {}

    def note_source(self, held: str | None = None) -> None:
        """Know that the current stream has written a gradient that will be read.

        Args:
            held: the role of its parameter, if only a step of that role is going to read it.
        """
        sources = self._sources if held is None else self._held.setdefault(held, [])
        current = device_runtime.current_stream(self._device)
        if current not in sources:
            sources.append(current)

    @contextmanager
    def running(self, reads: Any) -> Iterator[None]:
        """Within this context launches go to the side stream, after all that was launched so far.

        Args:
            reads: kept alive until the streams that it may belong to wait for these launches.
        """
        # earlier microbatches may have been held, and this one is added to their gradients
        owners = {device_runtime.current_stream(self._device), *self._all_sources()}
        for source in owners:
            self._stream.wait_stream(source)
        self._sources.clear()
        with device_runtime.on_stream(self._stream):
            yield
        event = device_runtime.Event()
        event.record(self._stream)
        self._in_flight.append((event, owners, reads))
        while len(self._in_flight) > IN_FLIGHT:
            self._let_go()

    def _let_go(self) -> None:
        """Let go what the oldest update reads."""
        event, owners, _ = self._in_flight[0]
        for owner in owners:
            owner.wait_event(event)
        self._in_flight.popleft()

    def let_sources_wait(self) -> None:
        """Have streams that wrote gradients wait for what the current one has been given to do with them."""
        current = device_runtime.current_stream(self._device)
        for source in self._all_sources():
            if source != current:
                source.wait_stream(current)

    def _all_sources(self) -> set[device_runtime.Stream]:
        return {*self._sources, *(stream for held in self._held.values() for stream in held)}

    def forget_sources(self, held: str | None = None) -> None:
        """Know that no gradient waits to be read, or none of those that were held for this role."""
        if held is None:
            self._sources.clear()
        else:
            self._held.pop(held, None)

    def join(self) -> None:
        """Have the current stream wait for all updates."""
        current = device_runtime.current_stream(self._device)
        current.wait_stream(self._stream)
        for event, owners, _ in self._in_flight:
            for owner in owners - {current}:
                owner.wait_event(event)
        self._in_flight.clear()


class SideStreams:
    """The side streams of all devices; none for those that have no streams."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, SideStream] = {}

    @property
    def are_used(self) -> bool:
        """Tell whether there are any."""
        return bool(self._streams)

    def of(self, device: torch.device) -> SideStream | None:
        """The stream of a device; None where updates run where the backward pass does."""
        if device.type != "cuda":
            return None
        if device not in self._streams:
            self._streams[device] = SideStream(device)
        return self._streams[device]

    @contextmanager
    def after_current(self, staged: Sequence[Staged | None]) -> Iterator[None]:
        """Within this context the launches of these steps go to side streams."""
        with ExitStack() as stack:
            for ready in staged:
                stream = None if ready is None else self.of(ready.launch.table.device)
                if stream is not None:
                    stack.enter_context(stream.running(ready))
            yield

    def let_sources_wait(self) -> None:
        """As `SideStream.let_sources_wait`, on all devices."""
        for stream in self._streams.values():
            stream.let_sources_wait()

    def forget_sources(self, held: str | None = None) -> None:
        """As `SideStream.forget_sources`, on all devices."""
        for stream in self._streams.values():
            stream.forget_sources(held)

    def join(self) -> None:
        """Have the current streams wait for all updates."""
        for stream in self._streams.values():
            stream.join()
