"""The joint sets of a table: what the launch that projects onto them reads, and what the update leaves for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..groups.constraints import JointSet, L2Ball, joint_set
from ..groups.param_groups import group_label
from ..memory.overlap import SHARED, overlaps_itself
from ..memory.sharding import is_sharded
from ..native.tables import (
    BALL,
    JOINT_SET,
    SIMPLEX,
    TILE,
    TILE_ELEMENTS,
)
from ..numerics.exact_sum import (
    COPIES,
    KERNEL_WORDS,
    WORDS,
    carried,
    root,
    rounded,
)


class JointSets:
    """Sets that many elements share, in the order of their first slot.

    Args:
        slots: of a table.
        groups: the optimizer's param groups.
        records: RECORD array [slots]; `set`, `row_length` and `row_stride` are written.
        tiles: TILE array [tiles], see `build_tiles`.
        device: where the kernels run.

    Attributes:
        sets: JOINT_SET array [sets].
        pieces: TILE array [pieces]: what a block projects; of a simplex, `offset` and `count` are those of rows.
        digits: int64 [sets, WORDS]: the sum of the squares of the elements of a ball, as the launch of the update
            leaves it (numerics/exact_sum.py).
        sums, tiles_done: int64 [sets, COPIES, KERNEL_WORDS], int32 [sets]: what has been added to that sum, and by how
            many tiles, in the launch at hand; zero between launches.
        factors: float64 [sets]: what elements of a ball are multiplied by, which follows from its sum.
        moved: int32 [slots]: which slots that launch moved.
        slots: bool [slots]: those with a joint set.
    """

    def __init__(
        self,
        slots: Sequence[Any],
        groups: list[dict[str, Any]],
        records: np.ndarray,
        tiles: np.ndarray,
        device: torch.device,
    ) -> None:
        of_slot = [joint_set(groups[slot.group]) for slot in slots]
        self.slots = np.array([found is not None for found in of_slot], bool)
        self._touching = self.slots & np.array([slot.local.numel() > 0 for slot in slots], bool)
        for name in ("set", "row_length", "row_stride"):
            records[name] = 0
        sets, pieces, self._balls = [], [np.zeros(0, TILE)], []
        slot_group = np.array([slot.group for slot in slots])
        for group in dict.fromkeys(slot_group[self.slots].tolist()):
            members = np.flatnonzero(slot_group == group)
            constraint = of_slot[members[0]]
            first, end = np.searchsorted(tiles["record"], [members[0], members[-1] + 1])
            sets.append(_entry(constraint, first, end - first))
            records["set"][members] = len(sets)
            if isinstance(constraint, L2Ball):
                self._balls.append(members)
                pieces.append(tiles[first:end])
            else:
                pieces.extend(_rows(slots, records, members.tolist()))
        self.sets = np.array(sets, JOINT_SET)
        self.pieces = np.concatenate(pieces)
        self.digits = torch.zeros((len(sets), WORDS), dtype=torch.int64, device=device)
        shape = len(sets), COPIES, KERNEL_WORDS
        self.sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self.factors = torch.zeros(len(sets), dtype=torch.float64, device=device)
        self.tiles_done = torch.zeros(len(sets), dtype=torch.int32, device=device)
        self.moved = torch.zeros(len(slots), dtype=torch.int32, device=device)
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Order the buffers of launches before a stream, and keep their memory while it works with them."""
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = None
        for tensor in self.results:
            tensor.record_stream(stream)

    @property
    def results(self) -> tuple[torch.Tensor, ...]:
        """What the launch of the update writes, in the order of struct StepArgs."""
        return self.sums, self.digits, self.factors, self.tiles_done, self.moved

    def conclude_digits(self, digits: torch.Tensor) -> None:
        """Take these sums, and write the factors of balls that follow from them, as if all of them had moved.

        Args:
            digits: int64 [sets, WORDS], e.g. `digits` of several ranks added up.
        """
        self.digits.copy_(carried(digits))
        norms = root(rounded(self.digits))
        size, largest = (
            torch.from_numpy(self.sets[name].copy()).to(norms.device)
            for name in ("size", "largest")
        )
        is_ball = torch.from_numpy(self.sets["kind"] == BALL).to(norms.device)
        leaves = is_ball & (norms > largest) & (norms < math.inf)
        self.factors.copy_(torch.where(leaves, size / norms, 1.0))

    def are_touched(self, moves: np.ndarray) -> bool:
        """Tell whether any element of a set is among these slots (bool [slots])."""
        return bool((self._touching & moves).any())

    def written(self, moves: np.ndarray) -> np.ndarray:
        """Slots that a step changes which moves these (bool [slots]): a ball scales all of its group."""
        written = moves.copy()
        for members in self._balls:
            written[members] |= (self._touching & moves)[members].any()
        return written

    def piece_range(self, first_slot: int, last_slot: int) -> tuple[int, int]:
        """The first piece of a range of slots, and their number."""
        first, end = np.searchsorted(self.pieces["record"], [first_slot, last_slot]).tolist()
        return first, end - first


def _entry(constraint: JointSet, first_tile: int, num_tiles: int) -> tuple[Any, ...]:
    kind = BALL if isinstance(constraint, L2Ball) else SIMPLEX
    sums = constraint.smallest(torch.float32), constraint.largest
    return (kind, constraint.size, *sums, first_tile, num_tiles)


def _rows(slots: Sequence[Any], records: np.ndarray, members: list[int]) -> list[np.ndarray]:
    """The pieces of parameters that are projected row by row, and where their rows lie."""
    found = []
    for i in members:
        local = slots[i].local
        if not local.numel():
            continue
        length = local.shape[-1] if local.dim() else 1
        # one with gaps is updated through a copy without
        is_strided = slots[i].dense and length > 1
        records["row_length"][i] = length
        records["row_stride"][i] = local.stride(-1) if is_strided else 1
        rows = local.numel() // length
        first = np.arange(0, rows, max(1, TILE_ELEMENTS // length))
        pieces = np.zeros(len(first), TILE)
        pieces["record"], pieces["offset"] = i, first
        pieces["count"] = np.diff(first, append=rows)
        found.append(pieces)
    return found


def make_joint_sets(
    slots: Sequence[Any],
    groups: list[dict[str, Any]],
    records: np.ndarray,
    tiles: np.ndarray,
    device: torch.device,
) -> JointSets | None:
    """Those of a table; None where it has none, as nearly all have."""
    if any(joint_set(groups[slot.group]) is not None for slot in slots):
        return JointSets(slots, groups, records, tiles, device)
    records["set"] = 0
    return None


def check_joint_sets(slots_by_kind: dict[Any, list[Any]], groups: list[dict[str, Any]]) -> None:
    """Raise ValueError or TypeError for a group whose set its parameters cannot share; names the group or parameter."""
    kinds: dict[int, Any] = {}
    for kind, slots in slots_by_kind.items():
        for slot in slots:
            constraint = joint_set(groups[slot.group])
            if constraint is None:
                continue
            if is_sharded(slot.param):
                raise ValueError(f"{slot.name}: {constraint} does not know DTensor shards")
            if not kind.has_memory:
                raise TypeError(
                    f"{slot.name}: {constraint} needs the elements of all of its group, a {type(slot.local).__name__} "
                    "has no memory of its own"
                )
            if overlaps_itself(slot.local):
                raise ValueError(f"{slot.name}: {SHARED}")  # a ball scales frozen ones too
            if slot.scheme.master not in (None, "stochastic"):
                raise ValueError(
                    f"{slot.name}: {constraint} does not know master {slot.scheme.master!r}: projected are parameters "
                    "as they are, for which there are None and 'stochastic'"
                )
            if kinds.setdefault(slot.group, kind) != kind:
                label = group_label(slot.group, groups[slot.group])
                raise ValueError(
                    f"{label}: {constraint} needs parameters of one device and dtype, got "
                    f"{_said(kinds[slot.group])} and {_said(kind)}"
                )


def _said(kind: Any) -> str:
    return f"{kind.dtype} on {kind.device}"
