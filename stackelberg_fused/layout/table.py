"""Tables: one row (record) per parameter and one entry (tile) per fixed run of its elements.

Body comes first and head last, so that stepping one player is a sub-range of tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..groups.hyperparameters import Hyperparameters
from ..groups.schemes import (
    DTYPE_WORD,
    MOMENTS,
    code_name,
    scale_name,
)
from ..memory.arena import lasting
from ..native.tables import RECORD
from .device_counts import DeviceCounts
from .joint_sets import JointSets, make_joint_sets
from .rows import HyperparameterRows
from .slot import Slot, Span
from .statistics import Statistics
from .tiles import build_tiles

# Where a record keeps the address of each of torch's state tensors.
STATE_FIELD = {
    "exp_avg": "exp_avg",
    "exp_avg_sq": "exp_avg_sq",
    "max_exp_avg_sq": "max_exp_avg_sq",
    "momentum_buffer": "exp_avg",
    "ema": "ema",
    "grad_sum": "grad_sum",
    "kahan_comp": "master",
    "remainder": "master",
    "master": "master",
}
for _moment in MOMENTS:
    STATE_FIELD[code_name(_moment)] = STATE_FIELD[_moment]
    STATE_FIELD[scale_name(_moment)] = scale_name(STATE_FIELD[_moment])
COUNTS = ("step", "waited")  # state that is one number per parameter


class RebuildNeeded(Exception):
    """The tables no longer describe the parameters, groups or state, so the engine has to be built again."""


class Table:
    """Everything one launch reads: parameters of one device.

    Args:
        slots: body slots first, head slots last.
        hyperparameters: of the optimizer's param groups.
        packs_state: small tensors of state lie in arenas.
    """

    def __init__(
        self, slots: list[Slot], hyperparameters: Hyperparameters, packs_state: bool = True
    ) -> None:
        self.slots = slots
        self.packs_state = packs_state
        self.hyperparameters = hyperparameters
        self.groups = hyperparameters.groups
        self.device = slots[0].local.device
        numel = [slot.local.numel() for slot in slots]
        self.records = np.zeros(len(slots), RECORD)
        self.records["numel"] = numel
        self.records["key"] = [slot.key for slot in slots]
        self.records["format"] = [slot.scheme.format for slot in slots]
        self.records["grad_dtype"] = [DTYPE_WORD.get(slot.scheme.param, 0) for slot in slots]
        self.note_formats()
        self._own_formats = self.formats
        block_rows = [slot.block_row for slot in slots]
        self.records["block_row"] = block_rows
        self.tiles = build_tiles(numel, [slot.region for slot in slots], block_rows)
        self.records["tiles"] = np.bincount(self.tiles["record"], minlength=len(slots))
        # float32 as in torch: exact up to 2**24 steps. The arrays own the memory, so that it stays where it is when
        # somebody exchanges that of a tensor which shows a count (`share_memory_`, a multiprocessing queue)
        self.step_counts = np.zeros(len(slots), np.float32)
        self.steps = torch.from_numpy(self.step_counts)
        self.momentum_ready = np.zeros(len(slots), bool)
        self.waited_counts = np.zeros(len(slots), np.float32)  # see turns.py
        self.waited = torch.from_numpy(self.waited_counts)
        # keep alive the memory that addresses point at, whatever becomes of the optimizer's state
        self.state_tensors: list[dict[str, Tensor]] = [{} for _ in slots]
        slot_group = np.array([slot.group for slot in slots], np.int64)
        self.rows = HyperparameterRows(
            hyperparameters, slot_group, self.step_counts, self.momentum_ready, self.waited_counts
        )
        self.set_turns()
        self.records["row"] = self.rows.slot_row
        self._written_rows: np.ndarray | None = self.rows.slot_row
        self.records_address = self.records.ctypes.data
        self.tiles_address = self.tiles.ctypes.data
        self.spans = self._build_spans()
        self.version = (
            0  # counts changes of the records; a copy on a device compares it with its own
        )
        self.joint_sets: JointSets | None = None  # until hyperparameters are accepted
        self.sets_version = 0
        self.device_tables: Any = None  # what a device backend keeps on its device
        # by the part of the table that is stepped: steps of two roles may run at the same time
        self.statistics: dict[Span, Statistics] = {}
        self.given_counts: dict[int, Tensor] = {}  # steps of slots that the user counts in a tensor
        self.counts: DeviceCounts | None = None  # where step counts live on the device
        self.may_be_captured = False  # in a CUDA graph

    def note_formats(self) -> None:
        """Collect the distinct formats of the records, each with the dtype of its gradient above its first byte."""
        words = self.records["format"] | self.records["grad_dtype"] << 8
        self.formats: tuple[int, ...] = tuple(np.unique(words).tolist())
        self.is_low_precision = self.formats != (0,)

    @property
    def has_other_gradients(self) -> bool:
        """Tell whether some gradient had another dtype than its parameter when formats were last noted."""
        return self.formats != self._own_formats

    def follow_rows(self) -> None:
        """Have records say which row is theirs, where slots were grouped anew since they last did."""
        if self._written_rows is not self.rows.slot_row:
            self.write("row", slice(None), self.rows.slot_row)
            self._written_rows = self.rows.slot_row

    @lasting
    def device_counts(self) -> DeviceCounts:
        """The step counts for a device, as they are on the host; see `count_on_device`."""
        empty = np.flatnonzero(self.records["numel"] == 0).tolist()
        return DeviceCounts(self.steps, self.momentum_ready, self.waited, empty, self.device)

    def count_on_device(self, counts: DeviceCounts) -> list[partial[Any]]:
        """The calls after which kernels read and advance step counts; `record.row` is the group, which has one row."""
        self._written_rows = None  # should an interrupt come before these calls
        self.write("row", slice(None), self.rows.slot_group)
        now = {"counts": counts, "steps": counts.steps, "waited": counts.waited}
        return [partial(self.__dict__.update, now)]

    def set_turns(self) -> None:
        """Follow the hyperparameters in how often groups move."""
        slot_group = self.rows.slot_group
        self.update_every = self.hyperparameters.scalars["update_every"][slot_group]  # of each slot
        self.sums = self.hyperparameters.static["mean_weight"][slot_group] != 0
        self.takes_turns = bool((self.update_every > 1).any())

    @lasting
    def set_joint_sets(self) -> None:
        """Follow the hyperparameters in what parameters are projected onto by a launch of its own."""
        self.joint_sets = make_joint_sets(
            self.slots, self.groups, self.records, self.tiles, self.device
        )
        self.sets_version += 1
        self.version += 1

    def turns_in(self, first_slot: int, last_slot: int) -> bool:
        """Tell whether some group of a range of slots does not move on every step."""
        here = self.update_every[first_slot:last_slot]
        return self.takes_turns and bool((here > 1).any())

    @lasting
    def statistics_of(self, span: Span) -> Statistics:
        """The buffers of a launch of gradient statistics; allocated when first asked for."""
        if span not in self.statistics:
            self.statistics[span] = Statistics(self.device)
        return self.statistics[span]

    def device_buffers(self) -> Iterator[Tensor]:
        """What launches read and write beside parameters, their state and joint sets."""
        if self.counts is not None:
            yield from self.counts.buffers()
        for statistics in self.statistics.values():
            yield from statistics.buffers()

    @property
    def first_head_tile(self) -> int:
        return self.spans["head"].first_tile

    def _build_spans(self) -> dict[str | None, Span]:
        bodies = sum(slot.role == "body" for slot in self.slots)
        body_tiles = int(np.searchsorted(self.tiles["record"], bodies))
        slots, tiles = len(self.slots), len(self.tiles)
        return {
            None: Span(0, slots, 0, tiles),
            "body": Span(0, bodies, 0, body_tiles),
            "head": Span(bodies, slots, body_tiles, tiles),
        }

    def write(self, field: str, slots: int | slice, value: Any) -> None:
        """Set a field of records and count the change, where there is one."""
        column = self.records[field]
        now = column[slots]
        # NumPy takes longer over one number than all else that is done for a gradient of another layout
        is_same = now == value if isinstance(slots, int) else np.array_equal(now, value)
        if not is_same:
            column[slots] = value
            self.version += 1

    def count_native_writes(self, wrote: bool) -> None:
        """Count that the reader wrote to the records in place."""
        self.version += wrote

    def set_state_address(self, index: int, name: str, address: int) -> None:
        """Have a slot's record say where a tensor of its state lies; 0: nowhere."""
        self.write(STATE_FIELD[name], index, address)
