"""Some of a table's tiles, for a launch that measures the gradients of some of its parameters only."""

from __future__ import annotations

import numpy as np

from .slot import Span
from .table import Table


class TileSubset:
    """The tiles of some slots of a table, in its order.

    Args:
        table: of the slots.
        slots: bool [slots]: which ones.
        index: tells the subsets of one table apart.

    Attributes:
        slots: as above.
        tiles: int64 [tiles, 2], see `build_tiles`.
        name: of these tiles among what is uploaded to a device.
    """

    def __init__(self, table: Table, slots: np.ndarray, index: int) -> None:
        self.slots = slots
        self._kept = np.flatnonzero(slots[table.tiles[:, 0]])
        self.tiles = np.ascontiguousarray(table.tiles[self._kept])
        self.name = f"tiles {index}"
        table.subsets[self.name] = self.tiles

    def before(self, tile: int) -> int:
        """Return how many of these tiles come before a tile of the table."""
        return int(np.searchsorted(self._kept, tile))

    def range_in(self, span: Span) -> tuple[int, int]:
        """Return the first of these tiles within a span of the table, and their number."""
        first = self.before(span.first_tile)
        return first, self.before(span.last_tile) - first
