"""The tables on a GPU: uploaded when they change, asynchronously, never with a sync."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..layout.part import Part
from ..layout.slot import Span
from ..layout.table import Table
from ..memory import device_runtime

# pinned blocks at hand for a capture: two captures in a row of two roles, each with statistics and a step
SPARE_BLOCKS = 8
# which table, and which version of it: rows are another table once step counts live on the device
Version = tuple[str, int]


class PinnedRing:
    """Pinned blocks for the uploads of one table: one is used again only after its copy is known to be over.

    Where the oldest is still in flight a new one is allocated, so uploading never waits.
    """

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._blocks: deque[tuple[Tensor, np.ndarray, device_runtime.Event]] = deque()

    def upload(
        self, source: np.ndarray, destination: Tensor, stream: device_runtime.Stream
    ) -> None:
        """Copy the bytes of `source` into the uint8 tensor `destination` on `stream`, which is the current one."""
        if self._blocks and self._blocks[0][2].query():
            pinned, view, event = self._blocks.popleft()
        else:
            pinned, view = device_runtime.pinned_block(self._nbytes)
            event = device_runtime.Event()
        view[:] = _as_bytes(source)
        device_runtime.copy_from_pinned(destination, pinned)
        event.record(stream)
        self._blocks.append((pinned, view, event))


class _Copy:
    """One table on the device, and the version of the host's that it holds."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.tensor = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.ring = PinnedRing(nbytes)
        self.version: Version | None = None


class CapturedUploads:
    """Uploads that a CUDA graph repeats at every replay, each from a pinned block and to memory that nothing else uses.

    Both are kept for ever, with all else that the launch reads, since nobody tells when a graph is gone and a table may
    be built anew before: a replay would upload what then lies there, and write where that says. Pinned memory is
    provided before a capture begins, in which it could not be allocated.
    """

    _held_for_replays: ClassVar[list[Any]] = []

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spare: list[tuple[Tensor, np.ndarray]] = []

    def provide(self, table: Table) -> None:
        """Have pinned blocks of the size that this table takes."""
        parts = [
            table.records,
            table.tiles,
            table.hyperparameters.static,
            table.hyperparameters.scalars,
        ]
        if table.joint_sets is not None:
            parts += [table.joint_sets.sets, table.joint_sets.pieces]
        nbytes = sum(_padded(part.nbytes) for part in parts)
        self._spare = [block for block in self._spare if block[0].numel() >= nbytes]
        while len(self._spare) < SPARE_BLOCKS:
            self._spare.append(device_runtime.pinned_block(nbytes))

    @classmethod
    def hold(cls, read: Any) -> None:
        """Keep alive what a launch that is captured reads."""
        cls._held_for_replays.append(read)

    def upload(self, table: Table, names: Sequence[str]) -> tuple[Tensor, ...]:
        """Copies on the device as uint8 tensors, made by the capture's stream."""
        sources = [_source(table, name)[0] for name in names]
        nbytes = sum(_padded(source.nbytes) for source in sources)
        fitting = [i for i, block in enumerate(self._spare) if block[0].numel() >= nbytes]
        pinned, view = (
            self._spare.pop(fitting[0]) if fitting else device_runtime.pinned_block(nbytes)
        )
        copy = torch.empty(pinned.numel(), dtype=torch.uint8, device=self._device)
        state = [tensor for tensors in table.state_tensors for tensor in tensors.values()]
        read = [*table.statistics.values(), *state, *table.hyperparameters.tensors()]
        self.hold((pinned, copy, table.counts, table.joint_sets, read))
        parts, at = [], 0
        for source in sources:
            view[at : at + source.nbytes] = _as_bytes(source)
            parts.append(copy[at : at + source.nbytes])
            at += _padded(source.nbytes)
        device_runtime.copy_from_pinned(copy, pinned)
        return tuple(parts)


def _padded(nbytes: int) -> int:
    """To whole cache lines, which kernels may rely on."""
    return -(-nbytes // 256) * 256


class DeviceTables:
    """Records, tiles and rows of one table on its GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies: dict[str, _Copy] = {}
        self._stream: device_runtime.Stream | None = None
        self._captured = CapturedUploads(device)

    def upload(self, table: Table, names: Sequence[str]) -> tuple[Tensor, ...]:
        """These of the host's tables as uint8 tensors, ready for a kernel on the current stream.

        Raises:
            RuntimeError: the stream is being captured, and the table's step counts and rates live on the host: a replay
                would repeat the bias corrections of one step.
        """
        if device_runtime.is_capturing():
            if table.counts is None or not table.may_be_captured:
                raise RuntimeError(
                    "step() can be captured in a CUDA graph only with capturable=True: step counts and rates live on "
                    "the host"
                )
            return self._captured.upload(table, names)
        if table.may_be_captured:
            self._captured.provide(table)
        stream = self.follow(table)
        if table.joint_sets is not None:
            table.joint_sets.used_on(stream)
        return tuple(self._get(name, *_source(table, name), stream) for name in names)

    def follow(self, table: Table) -> device_runtime.Stream:
        """Have the current stream, which is returned, come after all that was launched over these tables."""
        stream = device_runtime.current_stream(self._device)
        if self._stream is not None and stream != self._stream:
            self._move_between(self._stream, stream, table)
        self._stream = stream
        return stream

    def _get(
        self,
        name: str,
        source: np.ndarray,
        version: Version,
        stream: device_runtime.Stream,
    ) -> Tensor:
        """The copy of a host table, uploaded if `version` differs from the last one seen."""
        copy = self._copies.get(name)
        if copy is None or copy.tensor.numel() != source.nbytes:
            copy = self._copies[name] = _Copy(source.nbytes, self._device)
        if copy.version != version:
            copy.ring.upload(source, copy.tensor, stream)
            copy.version = version
        return copy.tensor

    def _move_between(
        self, before: device_runtime.Stream, stream: device_runtime.Stream, table: Table
    ) -> None:
        """Nothing may overwrite the copies, or take over their memory, while another stream still works with them.

        Nor that of counts and statistics, which are freed when the optimizer is built anew, or dropped.

        Steps that share parameters have to be ordered by the caller anyway; those of two roles need not be.
        """
        stream.wait_stream(before)
        for tensor in (*(copy.tensor for copy in self._copies.values()), *table.device_buffers()):
            device_runtime.keep_for(tensor, stream)


def follow_current_stream(table: Table) -> None:
    """Have the current stream come after all launches over a table, whose counts torch is about to read there."""
    if table.device_tables is not None and not device_runtime.is_capturing():
        table.device_tables.follow(table)


def _as_bytes(table: np.ndarray) -> np.ndarray:
    return table.reshape(-1).view(np.uint8)


def tables_on_device(table: Table, span: Span | Part | None = None) -> dict[str, Tensor]:
    """Upload the parts of a table that kernels read, as uint8 tensors by name.

    They are records, tiles and rows; groups, where step counts live on the device; sets and pieces, where there are
    joint sets. For a table on the CPU (interpreted Triton) the tensors are the host's own memory.

    Args:
        table: the table.
        span: what is launched; the tiles are those of a part, if it is one.
    """
    names = ["records", "tiles", "rows"]
    if table.counts is not None:
        names.append("groups")
    if table.joint_sets is not None:
        names += ["sets", "pieces"]
    if table.device.type == "cpu":
        found = {name: torch.from_numpy(_as_bytes(_source(table, name)[0])) for name in names}
    else:
        if table.device_tables is None:
            table.device_tables = DeviceTables(table.device)
        found = dict(zip(names, table.device_tables.upload(table, names), strict=True))
    if isinstance(span, Part):
        if span.on_device is None:
            span.on_device = device_runtime.uploaded(_as_bytes(span.tiles), table.device)
        found["tiles"] = span.on_device
        if table.device.type == "cuda" and device_runtime.is_capturing():
            CapturedUploads.hold(span.on_device)
    return found


def addresses(tables: Mapping[str, Tensor]) -> dict[str, int]:
    """Map each table to its address."""
    return {name: table.data_ptr() for name, table in tables.items()}


def _source(table: Table, name: str) -> tuple[np.ndarray, Version]:
    """A host table, and a version that changes with its content."""
    if name == "records":
        return table.records, (name, table.version)
    if name == "tiles":
        return table.tiles, (name, 0)
    if name in ("sets", "pieces"):
        return getattr(table.joint_sets, name), (name, table.sets_version)
    if table.counts is None:
        return table.rows.rows, (name, table.rows.version)
    hyperparameters = table.hyperparameters
    source = hyperparameters.static if name == "rows" else hyperparameters.scalars_for(table.device)
    return source, (f"{name} by group", hyperparameters.version)
