"""The joint sets of a table: what the launch that projects onto them reads, and what the update leaves for it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..groups.constraints import JointSet, L2Ball, joint_set
from ..memory import device_runtime
from ..memory.sharding import place_in_mesh
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
from ..numerics.projection import SLACK


@dataclass(eq=False)
class ShardedBall:
    """A ball of whose elements other ranks hold some.

    Its sum is in parts. Each is a set of its own, as far as kernels know: that of slots side by side which are laid out
    over one mesh.

    Attributes:
        members: its slots, ascending.
        sets: its sets, ascending.
        meshes: of each set, the mesh; None for plain tensors.
        counts: of each set, whether its elements count on this rank, see `place_in_mesh`.
    """

    members: np.ndarray
    sets: list[int]
    meshes: list[Any]
    counts: list[bool]


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
        sharded: the balls that ranks share. Their digits are those of this rank, and somebody has to write their
            factors before they are projected onto.
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
        has_set = np.array([found is not None for found in of_slot], bool)
        self._touching = has_set & np.array([slot.local.numel() > 0 for slot in slots], bool)
        for name in ("set", "row_length", "row_stride"):
            records[name] = 0
        sets, pieces, self._balls, self.sharded = [], [np.zeros(0, TILE)], [], []
        self._in_sharded, reductions = np.zeros(len(slots), bool), []
        slot_group = np.array([slot.group for slot in slots])
        for group in dict.fromkeys(slot_group[has_set].tolist()):
            members = np.flatnonzero(slot_group == group)
            constraint, reduction = of_slot[members[0]], _reduction(slots[members[0]])
            is_ball = isinstance(constraint, L2Ball)
            runs = [*_runs(slots, members)] if is_ball else [(None, True, members)]
            for _, _, run in runs:
                first, end = np.searchsorted(tiles["record"], [run[0], run[-1] + 1])
                sets.append(_entry(constraint, first, end - first))
                reductions.append(reduction)
                records["set"][run] = len(sets)
                pieces += [tiles[first:end]] if is_ball else _rows(slots, records, run.tolist())
            if is_ball:
                self._balls.append(members)
            meshes = [mesh for mesh, _, _ in runs]
            if any(mesh is not None for mesh in meshes):
                here = [*range(len(sets) - len(runs), len(sets))]
                counts = [is_counted for _, is_counted, _ in runs]
                self.sharded.append(ShardedBall(members, here, meshes, counts))
                self._in_sharded[members] = True
        self.sets = np.array(sets, JOINT_SET)
        self.pieces = np.concatenate(pieces)
        is_ball = self.sets["kind"] == BALL
        numbers = self.sets["size"], self.sets["largest"], np.array(reductions), is_ball
        self._numbers = [torch.from_numpy(each.copy()).to(device) for each in numbers]
        self.digits = torch.zeros((len(sets), WORDS), dtype=torch.int64, device=device)
        shape = len(sets), COPIES, KERNEL_WORDS
        self.sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self.factors = torch.zeros(len(sets), dtype=torch.float64, device=device)
        self.tiles_done = torch.zeros(len(sets), dtype=torch.int32, device=device)
        self.moved = torch.zeros(len(slots), dtype=torch.int32, device=device)
        self._stream: device_runtime.Stream | None = None
        if device.type == "cuda":
            self._stream = device_runtime.current_stream(device)

    def used_on(self, stream: device_runtime.Stream) -> None:
        """Order the buffers of launches before a stream, and keep their memory while it works with them."""
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = None
        for tensor in (*self.results, *self._numbers):
            device_runtime.keep_for(tensor, stream)

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
        every = torch.arange(len(digits), device=self.digits.device)
        self.factors.copy_(self._factors(self.digits, every))

    def conclude_sharded(
        self, sets: torch.Tensor, digits: torch.Tensor, moved: torch.Tensor
    ) -> None:
        """Write the factors of balls that ranks share.

        Args:
            sets: int64 [n]: of the balls.
            digits: int64 [n, WORDS]: the sum of the ball that each of them is of, over all ranks.
            moved: bool [n]: whether an element of that ball moved, on any rank.
        """
        self.factors[sets] = torch.where(moved, self._factors(digits, sets), 1.0)

    def _factors(self, digits: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:
        """float64 [n]: the factors of sets with these sums; 1 for what is no ball."""
        size, largest, reduction, is_ball = (numbers[sets] for numbers in self._numbers)
        norms = root(rounded(digits))
        leaves = is_ball & (norms > largest) & (norms < math.inf)
        return torch.where(leaves, size / norms * reduction, 1.0)

    def are_needed(self, moves: np.ndarray, here: slice | np.ndarray) -> bool:
        """Tell whether a launch of these slots, of which some move (bool [slots]), has to know the sets.

        An element of a set may move, on this rank or, of a ball that ranks share, on another one.
        """
        return bool(self._may_change(moves, here).any())

    def written(self, moves: np.ndarray, here: slice | np.ndarray) -> np.ndarray:
        """Slots that a step may change which moves these (bool [slots]): a ball scales all of its group.

        Args:
            here: the slots of the step.
        """
        written, touched = moves.copy(), self._may_change(moves, here)
        for members in self._balls:
            written[members] |= self._touching[members] & touched[members].any()
        return written

    def _may_change(self, moves: np.ndarray, here: slice | np.ndarray) -> np.ndarray:
        found = self._touching & moves
        if self.sharded:
            found[here] |= (self._touching & self._in_sharded)[here]
        return found

    def piece_range(self, first_slot: int, last_slot: int) -> tuple[int, int]:
        """The first piece of a range of slots, and their number."""
        first, end = np.searchsorted(self.pieces["record"], [first_slot, last_slot]).tolist()
        return first, end - first


def _runs(slots: Sequence[Any], members: np.ndarray) -> Iterator[tuple[Any, bool, np.ndarray]]:
    """The members of a ball, cut where the mesh changes that they are laid out over, or whether they count here."""
    places = [place_in_mesh(slots[i].param) for i in members]
    first = 0
    for end in range(1, len(members) + 1):
        if end == len(members) or places[end] != places[first]:
            yield (*places[first], members[first:end])
            first = end


def _reduction(slot: Any) -> float:
    """See `ball_factor`."""
    return 1 - SLACK if torch.finfo(slot.local.dtype).eps < SLACK else 1.0


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
    """Those of a table; None where it has none, as nearly all have.

    Raises:
        RuntimeError: a CUDA graph is captured, in which they cannot be put onto the device.
    """
    if any(joint_set(groups[slot.group]) is not None for slot in slots):
        if device.type == "cuda" and device_runtime.is_capturing():
            raise RuntimeError(
                "step() is being captured in a CUDA graph, but its joint sets are not on the device yet: take a step "
                "before"
            )
        return JointSets(slots, groups, records, tiles, device)
    records["set"] = 0
    return None
