"""The recorded GPU itself: what is in order it lets pass, and what is not it reports, whenever things run."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from needs import needs_posed_gpu
from recording.posed_device import GPU
from recording.runtime import RecordingRuntime
from recording.training import SCHEDULES, recorded

from stackelberg_fused.memory import device_runtime

pytestmark = needs_posed_gpu


def _value(gpu: RecordingRuntime, value: float) -> torch.Tensor:
    return torch.full((64,), value, device=GPU)


def _unordered_write(gpu: RecordingRuntime) -> None:
    a = _value(gpu, 1.0)
    other = gpu.new_stream()
    other.wait_stream(gpu.default)
    with gpu.on_stream(other):
        b = a + 1
    a.fill_(5.0)
    del b


def _memory_of_another_stream(gpu: RecordingRuntime) -> None:
    _value(gpu, 1.0)
    a = torch.empty(64, device=GPU)
    with gpu.on_stream(gpu.new_stream()):
        a.fill_(1)
    gpu.synchronize()


def _freed_early(gpu: RecordingRuntime) -> None:
    a = _value(gpu, 1.0)
    other = gpu.new_stream()
    other.wait_stream(gpu.default)
    with gpu.on_stream(other):
        a.add_(1)
    del a


def _pinned_block_overwritten(gpu: RecordingRuntime) -> None:
    pinned, view = device_runtime.pinned_block(64)
    view[:] = 1
    device_runtime.copy_from_pinned(torch.empty(64, dtype=torch.uint8, device=GPU), pinned)
    view[8:16] = 2


def _read_under_capture(gpu: RecordingRuntime) -> None:
    a = _value(gpu, 1.0)
    with gpu.captured():
        a.sum().item()


def _pinned_under_capture(gpu: RecordingRuntime) -> None:
    with gpu.captured():
        device_runtime.pinned_block(64)


def _uncaptured_work(gpu: RecordingRuntime) -> None:
    a, other = _value(gpu, 1.0), gpu.new_stream()
    other.wait_stream(gpu.default)
    with gpu.captured():
        with gpu.on_stream(other):
            a.add_(1)
        gpu.current.wait_stream(other)
    gpu.synchronize()


def _freed_under_a_graph(gpu: RecordingRuntime) -> None:
    a = _value(gpu, 1.0)
    with gpu.captured() as graph:
        a.add_(1)
    del a
    graph.replay()


def _overwritten_under_a_graph(gpu: RecordingRuntime) -> None:
    pinned, view = device_runtime.pinned_block(64)
    target = torch.empty(64, dtype=torch.uint8, device=GPU)
    view[:] = 1
    with gpu.captured():
        device_runtime.copy_from_pinned(target, pinned)
    view[:] = 2


def _waiting_beside_a_capture(gpu: RecordingRuntime) -> None:
    other = gpu.new_stream()
    with gpu.captured(), gpu.on_stream(other):
        other.synchronize()


def _pinned_beside_a_capture(gpu: RecordingRuntime) -> None:
    with gpu.captured(), gpu.on_stream(gpu.new_stream()):
        device_runtime.pinned_block(64)


FAULTS: dict[str, Callable[[RecordingRuntime], None]] = {
    "without an event between them": _unordered_write,
    "does not wait for it": _memory_of_another_stream,
    "was freed before its stream is through": _freed_early,
    "is overwritten by the host while copy": _pinned_block_overwritten,
    "_local_scalar_dense.default by .* under capture": _read_under_capture,
    "allocates pinned memory under capture": _pinned_under_capture,
    r"Stream.synchronize\(\) by .* under capture": _waiting_beside_a_capture,
    "_beside_a_capture allocates pinned memory under capture": _pinned_beside_a_capture,
    "waits for work outside of its graph": _uncaptured_work,
    "of a graph's replay uses it": _freed_under_a_graph,
    "and a graph's replays read it": _overwritten_under_a_graph,
}


def test_every_fault_is_reported_whenever_things_run() -> None:
    for report, schedule in product(FAULTS, SCHEDULES):
        with recorded(schedule) as gpu:
            FAULTS[report](gpu)
            gpu.synchronize()
        found = [line for line in gpu.reports if re.search(report, line)]
        assert found, (report, schedule, gpu.reports)


@pytest.mark.parametrize(
    "write",
    [
        lambda pinned, view: pinned.fill_(2),
        lambda pinned, view: np.copyto(view, 2),
        lambda pinned, view: view.fill(2),
        lambda pinned, view: np.add(view, 1, out=view),
    ],
    ids=["torch", "copyto", "fill", "out"],
)
def test_a_pinned_block_may_be_overwritten_in_many_ways(write: Callable[[Any, Any], Any]) -> None:
    """Those that the array does not notice show in what the copy reads, unless it has run before."""
    with recorded("late") as gpu:
        pinned, view = device_runtime.pinned_block(64)
        view[:] = 1
        device_runtime.copy_from_pinned(torch.empty(64, dtype=torch.uint8, device=GPU), pinned)
        write(pinned, view)
        gpu.synchronize()
    assert any("was overwritten before copy" in line for line in gpu.reports), gpu.reports


def test_what_is_in_order_passes() -> None:
    for schedule in SCHEDULES:
        with recorded(schedule) as gpu:
            a, other = _value(gpu, 1.0), gpu.new_stream()
            other.wait_stream(gpu.default)
            with gpu.on_stream(other):
                b = a + 1
                event = device_runtime.Event()
                event.record(other)
            device_runtime.keep_for(a, other)
            device_runtime.keep_for(b, gpu.default)
            gpu.default.wait_event(event)
            a.copy_(b)
            assert a.tolist() == [2.0] * 64
            del a, b
            pinned, view = device_runtime.pinned_block(64)
            for value in (1, 2):
                view[:] = value
                copy = torch.empty(64, dtype=torch.uint8, device=GPU)
                device_runtime.copy_from_pinned(copy, pinned)
                gpu.default.synchronize()
            assert copy.tolist() == [2] * 64
            gpu.synchronize()
        assert gpu.reports == []


def test_a_graph_repeats_what_was_captured() -> None:
    for schedule in SCHEDULES:
        with recorded(schedule) as gpu:
            a = _value(gpu, 1.0)
            with gpu.captured() as graph:
                a.mul_(3)
                within = a + 1
            assert a.tolist() == [1.0] * 64
            graph.replay()
            graph.replay()
            assert (a.tolist(), within.tolist()) == ([9.0] * 64, [10.0] * 64)
            gpu.synchronize()
        assert gpu.reports == []


def test_operations_run_late_and_memory_is_handed_out_early() -> None:
    """What the stream reads is still there when it gets to it: whoever has the memory next writes after it."""
    with recorded("late") as gpu:
        a = _value(gpu, 1.0)
        b = a + 1
        address = a.data_ptr()
        del a
        again = torch.empty(64, device=GPU)
        assert again.data_ptr() == address
        again.fill_(7.0)
        assert gpu.waits == []
        assert b.tolist() == [2.0] * 64
        assert len(gpu.waits) == 1
    assert gpu.reports == []


def test_nothing_is_left_of_it() -> None:
    before: list[Any] = [device_runtime.Event, device_runtime.current_stream]
    with recorded("late") as gpu:
        kept = _value(gpu, 1.0)
        gpu.synchronize()
    assert [device_runtime.Event, device_runtime.current_stream] == before
    assert kept.is_cuda
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(3, device=GPU)
