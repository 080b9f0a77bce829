"""Parts of a table: slots that one launch updates though they need not lie side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from .slot import Span
from .table import Table


class Part:
    """Some slots of a table, with a list of their tiles; stands in the place of a `Span`.

    Args:
        table: the table.
        slots: their indices, in any order.
        after: calls of built-in functions that conclude the update of these slots, whatever comes between.

    Attributes:
        here: int64 array: the indices, ascending, so that the body comes first as in the table.
        runs: spans of neighbours among them; their tiles are not filled in.
        first_slot, last_slot: the range in which they lie.
        tiles: TILE array [n], as those of a table.
        first_tile, last_tile: 0 and n.
        first_head_tile: where the head's tiles begin among them.
        on_device: `tiles` on the table's device as uint8, once they were uploaded.
    """

    def __init__(
        self, table: Table, slots: Iterable[int], after: Sequence[partial[Any]] = ()
    ) -> None:
        self.here = here = np.unique(np.fromiter(slots, np.int64))
        self.after = after
        self.first_slot = int(here[0]) if len(here) else 0
        self.last_slot = int(here[-1]) + 1 if len(here) else 0
        begins = np.flatnonzero(np.diff(here, prepend=-2) != 1)
        ends = np.append(begins[1:], len(here))[: len(begins)]
        self.runs = [
            Span(int(here[begin]), int(here[end - 1]) + 1, 0, 0)
            for begin, end in zip(begins, ends, strict=True)
        ]
        self.tiles = _tiles_of(table, here)
        self.first_tile, self.last_tile = 0, len(self.tiles)
        bodies = table.spans["body"].last_slot
        self.first_head_tile = int(np.searchsorted(self.tiles["record"], bodies))
        self.on_device: Tensor | None = None

    @property
    def indices(self) -> list[int]:
        """The slots."""
        return self.here.tolist()


def _tiles_of(table: Table, slots: np.ndarray) -> np.ndarray:
    """The tiles of some slots, ascending."""
    counts = table.records["tiles"][slots]
    first = np.searchsorted(table.tiles["record"], slots)
    begins = np.cumsum(counts) - counts
    return table.tiles[np.arange(counts.sum()) + np.repeat(first - begins, counts)]
