"""Side streams, of which a record of calls stands for a GPU: what waits for what, and how long gradients are held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from stackelberg_fused.engine.side_stream import IN_FLIGHT, SideStream, SideStreams
from stackelberg_fused.memory import device_runtime

GPU = torch.device("cuda", 0)


class _Recorded:
    """Streams and events that write down what they are asked to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.current = self.Stream(self, "backward")
        self.events = 0

    class Stream:
        def __init__(self, record: _Recorded, name: str) -> None:
            self.record, self.name = record, name

        def wait_stream(self, other: Any) -> None:
            self.record.calls.append((self.name, "waits for", other.name))

        def wait_event(self, event: Any) -> None:
            self.record.calls.append((self.name, "waits for", event.name))

    class Event:
        def __init__(self, record: _Recorded) -> None:
            record.events += 1
            self.recording, self.name = record, f"update {record.events}"

        def record(self, stream: Any) -> None:
            self.recording.calls.append((stream.name, "records", self.name))

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def launch(self, what: str) -> None:
        self.calls.append((self.current.name, "launches", what))


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> _Recorded:
    record = _Recorded()
    monkeypatch.setattr(device_runtime, "Stream", lambda _: record.Stream(record, "side"))
    monkeypatch.setattr(device_runtime, "Event", lambda: record.Event(record))
    monkeypatch.setattr(device_runtime, "current_stream", lambda _: record.current)
    monkeypatch.setattr(device_runtime, "on_stream", record.stream)
    return record


def test_an_update_comes_after_its_gradients_and_runs_beside_the_rest(record: _Recorded) -> None:
    side = SideStream(GPU)
    side.note_source()
    with side.running("gradients"):
        record.launch("update 1")
    assert record.calls == [
        ("side", "waits for", "backward"),
        ("side", "launches", "update 1"),
        ("side", "records", "update 1"),
    ]
    side.join()
    assert record.calls[3:] == [("backward", "waits for", "side")]


def test_gradients_of_other_streams_are_waited_for(record: _Recorded) -> None:
    side = SideStream(GPU)
    with record.stream(record.Stream(record, "reduction")):
        side.note_source()
        side.note_source()
    with side.running(None):
        pass
    waits = [call for call in record.calls if call[:2] == ("side", "waits for")]
    assert sorted(waits) == [("side", "waits for", "backward"), ("side", "waits for", "reduction")]
    record.calls.clear()
    with side.running(None):
        pass
    assert record.calls[0] == ("side", "waits for", "backward")
    assert record.calls[1] == ("side", "records", "update 2")


def test_gradients_are_held_until_the_stream_that_owns_them_has_waited(record: _Recorded) -> None:
    side = SideStream(GPU)
    alive: list[int] = []

    class Gradients:
        def __init__(self, number: int) -> None:
            self.number = number
            alive.append(number)

        def __del__(self) -> None:
            waited = ("backward", "waits for", f"update {self.number}") in record.calls
            assert waited or ("backward", "waits for", "side") in record.calls
            alive.remove(self.number)

    for number in range(1, 6):
        with side.running(Gradients(number)):
            record.launch(f"update {number}")
        assert alive == list(range(max(1, number - IN_FLIGHT + 1), number + 1))
    side.join()
    assert alive == []


def test_there_is_one_for_each_gpu_and_none_for_the_host(record: _Recorded) -> None:
    streams = SideStreams()
    assert streams.of(torch.device("cpu")) is None
    assert not streams.are_used
    assert streams.of(GPU) is streams.of(GPU)
    assert streams.of(torch.device("cuda", 1)) is not streams.of(GPU)
    assert streams.are_used
    streams.join()
    assert record.calls == [("backward", "waits for", "side")] * 2
