"""Uploads to a GPU, with a stand-in for CUDA: what is copied when, which block is used again, who waits for whom."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stackelberg_fused.backends.device_tables import DeviceTables, tables_on_device
from stackelberg_fused.memory import device_runtime
from stackelberg_fused.native.tables import GROUP, RECORD, ROW

TABLES = ("records", "tiles", "rows")


class Stream:
    def __init__(self) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Gpu:
    """Stand-in for what the tables ask of a GPU's runtime. Copies end when `finish` is called."""

    def __init__(self) -> None:
        self.stream = Stream()
        self.is_capturing = False
        self.finished = 0
        self.recorded = 0
        self.blocks = 0
        gpu = self

        class Event:
            def record(self, stream: Stream) -> None:
                assert stream is gpu.stream
                gpu.recorded += 1
                self.ticket = gpu.recorded

            def query(self) -> bool:
                return self.ticket <= gpu.finished

        self.calls: dict[str, Any] = {
            "Event": Event,
            "current_stream": lambda device: self.stream,
            "is_capturing": lambda: self.is_capturing,
            "keep_for": lambda tensor, stream: None,
            "pinned_block": self.pinned_block,
        }

    def pinned_block(self, nbytes: int) -> tuple[torch.Tensor, np.ndarray]:
        self.blocks += 1
        block = torch.empty(nbytes, dtype=torch.uint8)
        return block, block.numpy()

    def finish(self) -> None:
        self.finished = self.recorded


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    for name, call in gpu.calls.items():
        monkeypatch.setattr(device_runtime, name, call)
    return gpu


def _table(rows: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        records=np.zeros(3, RECORD),
        tiles=np.arange(8, dtype=np.int64).reshape(4, 2),
        rows=SimpleNamespace(rows=np.ones(rows, ROW), version=0),
        version=0,
        counts=None,
        joint_sets=None,
        may_be_captured=False,
        statistics={},
        state_tensors=[],
        hyperparameters=SimpleNamespace(
            version=0,
            tensors=list,
            static=np.ones(rows, ROW),
            scalars=np.ones(rows, GROUP),
            scalars_for=lambda device: np.ones(rows, GROUP),
        ),
        device=torch.device("cpu"),
        device_tables=None,
        device_buffers=list,
    )


def _same(copies: tuple[torch.Tensor, ...], table: SimpleNamespace) -> bool:
    host = (table.records, table.tiles, table.rows.rows)
    return all(c.numpy().tobytes() == h.tobytes() for c, h in zip(copies, host, strict=True))


def test_only_what_changed_is_uploaded(gpu: Gpu) -> None:
    table, on_device = _table(), DeviceTables(torch.device("cpu"))
    assert _same(on_device.upload(table, TABLES), table)
    assert gpu.recorded == 3
    on_device.upload(table, TABLES)
    assert gpu.recorded == 3  # by the launch of statistics already
    table.rows.rows["step_size"] = 2
    table.rows.version += 1
    assert _same(on_device.upload(table, TABLES), table)
    assert gpu.recorded == 4
    table.records["grad"] = 48
    table.version += 1
    assert _same(on_device.upload(table, TABLES), table)
    assert gpu.recorded == 5


def test_rows_by_group_are_not_taken_for_rows_by_step_count(gpu: Gpu) -> None:
    """Once step counts live on the device they are another table, whose versions count from anywhere."""
    table, on_device = _table(), DeviceTables(torch.device("cpu"))
    on_device.upload(table, TABLES)
    table.hyperparameters.static["momentum"] = 3
    table.counts = object()
    assert (
        on_device.upload(table, TABLES)[2].numpy().tobytes()
        == table.hyperparameters.static.tobytes()
    )


def test_tables_that_grow(gpu: Gpu) -> None:
    table, on_device = _table(), DeviceTables(torch.device("cpu"))
    on_device.upload(table, TABLES)
    table.rows.rows = np.ones(9, ROW)
    assert _same(on_device.upload(table, TABLES), table)


def test_a_block_is_written_again_only_when_its_copy_is_over(gpu: Gpu) -> None:
    table, on_device = _table(), DeviceTables(torch.device("cpu"))
    for _ in range(4):
        table.rows.version += 1
        on_device.upload(table, TABLES)
    assert gpu.blocks == 2 + 4  # records, tiles; rows for each step in flight
    gpu.finish()
    for _ in range(4):
        table.rows.version += 1
        on_device.upload(table, TABLES)
        gpu.finish()
    assert gpu.blocks == 2 + 4


def test_another_stream_waits_for_the_last_one(gpu: Gpu) -> None:
    table, on_device = _table(), DeviceTables(torch.device("cpu"))
    on_device.upload(table, TABLES)
    first, gpu.stream = gpu.stream, Stream()
    on_device.upload(table, TABLES)
    on_device.upload(table, TABLES)
    assert gpu.stream.waited_for == [first]
    assert first.waited_for == []


def test_capture_is_refused_before_anything_is_uploaded(gpu: Gpu) -> None:
    gpu.is_capturing = True
    with pytest.raises(RuntimeError, match="CUDA graph"):
        DeviceTables(torch.device("cpu")).upload(_table(), TABLES)
    assert gpu.recorded == 0


def _captured(gpu: Gpu, on_device: DeviceTables, table: SimpleNamespace) -> list[bytes]:
    """Contents of the copies that a capture made."""
    gpu.is_capturing = True
    copies = on_device.upload(table, (*TABLES, "groups"))
    gpu.is_capturing = False
    return [copy.numpy().tobytes() for copy in copies]


def test_a_capture_owns_its_blocks(gpu: Gpu) -> None:
    table, on_device = _table(), DeviceTables(torch.device("cpu"))
    table.counts, table.may_be_captured = object(), True
    on_device.upload(table, TABLES)
    provided = gpu.blocks
    seen = _captured(gpu, on_device, table)
    assert gpu.blocks == provided  # nothing is allocated while a stream is captured
    host = (
        table.records,
        table.tiles,
        table.hyperparameters.static,
        table.hyperparameters.scalars_for(None),
    )
    assert seen == [part.tobytes() for part in host]
    pinned, copy, *_ = on_device._captured._held_for_replays[-1]
    before = pinned.clone()
    for number in range(100):
        table.records["grad"] = number
        table.version += 1
        on_device.upload(table, TABLES)
        gpu.finish()
    assert torch.equal(pinned, before)
    assert torch.equal(copy, before)  # nobody but a replay writes there
    table.records["grad"] = 0
    assert _captured(gpu, on_device, table) == seen
    assert len({block.data_ptr() for block, *_ in on_device._captured._held_for_replays[-2:]}) == 2


def test_a_capture_of_a_larger_table_gets_larger_blocks(gpu: Gpu) -> None:
    table, on_device = _table(), DeviceTables(torch.device("cpu"))
    table.counts, table.may_be_captured = object(), True
    on_device.upload(table, TABLES)
    table.records = np.zeros(900, RECORD)
    table.version += 1
    on_device.upload(table, TABLES)
    provided = gpu.blocks
    assert _captured(gpu, on_device, table)[0] == table.records.tobytes()
    assert gpu.blocks == provided


def test_on_the_cpu_the_tables_are_the_hosts_own() -> None:
    table = _table()
    records, _, rows = tables_on_device(table).values()
    table.records["grad"] = 48
    table.rows.rows["step_size"] = 2
    assert records.numpy().tobytes() == table.records.tobytes()
    assert rows.numpy().tobytes() == table.rows.rows.tobytes()
