"""Tiles: fixed runs of the elements of parameters, one for each block of a launch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..memory.region import Region, whole_region
from ..native.tables import TILE, TILE_ELEMENTS


def build_tiles(
    numel: Sequence[int],
    regions: Sequence[Region] | None = None,
    block_rows: Sequence[int] | None = None,
) -> np.ndarray:
    """Cut parameters into tiles: TILE array [tiles], in the order of the parameters.

    A tile neither crosses two runs of a region, nor begins within a block of 8-bit codes. It ends where the index in
    the whole parameter is divisible by TILE_ELEMENTS, as random numbers do, unless rows of blocks end elsewhere.

    Args:
        numel: of each parameter.
        regions: of each parameter; those of whole parameters, if it is None.
        block_rows: `block_row` of each parameter's record; 0, if it is None.
    """
    simple = _simple_tiles(numel)
    if regions is None or block_rows is None:
        return simple
    others = [
        i
        for i, (region, row) in enumerate(zip(regions, block_rows, strict=True))
        if row or region != whole_region(numel[i])
    ]
    if not others:
        return simple
    parts = [simple[~np.isin(simple["record"], others)]]
    parts.extend(_tiles_of(i, numel[i], regions[i], block_rows[i]) for i in others)
    every = np.concatenate(parts)
    return every[np.argsort(every["record"], kind="stable")]


def _simple_tiles(numel: Sequence[int]) -> np.ndarray:
    """Tiles of whole parameters whose blocks are full."""
    elements = np.asarray(numel, np.int64)
    counts = -(-elements // TILE_ELEMENTS)
    record = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    first = np.cumsum(counts) - counts
    offset = (np.arange(len(record), dtype=np.int64) - first[record]) * TILE_ELEMENTS
    tiles = np.zeros(len(record), TILE)
    tiles["record"], tiles["offset"], tiles["whole"] = record, offset, offset
    tiles["count"] = np.minimum(TILE_ELEMENTS, elements[record] - offset)
    return tiles


def _tiles_of(record: int, numel: int, region: Region, block_row: int) -> np.ndarray:
    """Tiles of one parameter of any kind."""
    if not numel:
        return np.zeros(0, TILE)
    begins = np.arange(0, numel, region.run)
    if block_row:
        begins = _begins_in_rows(begins, region.run, block_row)
    else:
        # the run's own end, and every boundary of streams within it
        before = (region.start + begins // region.run * region.stride) % TILE_ELEMENTS
        longest = -(-(region.run + TILE_ELEMENTS) // TILE_ELEMENTS)
        within = np.arange(longest) * TILE_ELEMENTS - before[:, None]
        within = np.where(np.arange(longest) == 0, 0, within)
        begins = (begins[:, None] + within)[within < region.run]
    tiles = np.zeros(len(begins), TILE)
    tiles["record"], tiles["offset"] = record, begins
    tiles["count"] = np.diff(begins, append=numel)
    tiles["whole"] = region.start + begins // region.run * region.stride + begins % region.run
    return tiles


def _begins_in_rows(runs: np.ndarray, run: int, row: int) -> np.ndarray:
    """Where tiles of whole rows, or of a part of one row, begin; the rows of a run lie side by side.

    Args:
        runs: where runs begin.
        run, row: elements of a run and of a row; a run has whole rows.
    """
    if row <= TILE_ELEMENTS:
        within = np.arange(0, run, TILE_ELEMENTS // row * row)
    else:
        within = (np.arange(0, run, row)[:, None] + np.arange(0, row, TILE_ELEMENTS)).reshape(-1)
    return (runs[:, None] + within).reshape(-1)
