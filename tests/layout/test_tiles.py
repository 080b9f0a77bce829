"""Tiles cover parameters once, and begin and end where kernels need them to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackelberg_fused.layout.tiles import build_tiles
from stackelberg_fused.memory.region import Region, whole_region
from stackelberg_fused.native.tables import TILE, TILE_ELEMENTS
from stackelberg_fused.numerics.codec import BLOCK


@given(st.lists(st.integers(0, 3 * TILE_ELEMENTS + 1), min_size=1, max_size=30))
def test_tiles_cover_every_element_once(numel: list[int]) -> None:
    tiles = build_tiles(numel)
    assert tiles.dtype == TILE
    covered = [0] * len(numel)
    for record, count, offset, whole in tiles.tolist():
        # tiles of a record come in order, and none starts at or beyond its end: none is empty, none straddles
        assert offset == whole == covered[record]
        assert count == min(TILE_ELEMENTS, numel[record] - offset) > 0
        covered[record] += count
    assert covered == numel
    assert (np.diff(tiles["record"]) >= 0).all()


def test_tiles_beyond_32_bits() -> None:
    tiles = build_tiles([2**33 + 1, 5])
    assert len(tiles) == 2**33 // TILE_ELEMENTS + 2
    assert tiles[-2].tolist() == (0, 1, 2**33, 2**33)
    assert tiles[-1].tolist() == (1, 5, 0, 0)


REGIONS = st.tuples(
    st.integers(0, 3 * TILE_ELEMENTS),  # start
    st.integers(1, 2 * TILE_ELEMENTS + 5),  # run
    st.integers(0, 700),  # indices between runs
    st.integers(1, 9),  # runs
)


@given(REGIONS)
def test_tiles_of_a_shard(drawn: tuple[int, int, int, int]) -> None:
    start, run, gap, runs = drawn
    region = Region(start, run, run + gap)
    tiles = build_tiles([7, run * runs, 7], [whole_region(7), region, whole_region(7)], [0, 0, 0])
    assert tiles["record"].tolist() == sorted(tiles["record"].tolist())
    index = np.arange(run * runs)
    expected = start + index // run * (run + gap) + index % run
    found = []
    for _, count, offset, whole in tiles[tiles["record"] == 1].tolist():
        assert offset == len(found)
        found.extend(range(whole, whole + count))
        # within one stream of random numbers
        assert whole // TILE_ELEMENTS == (whole + count - 1) // TILE_ELEMENTS
    assert found == expected.tolist()


@given(st.integers(1, 40), st.integers(1, 2 * TILE_ELEMENTS + 5), st.integers(0, 9999))
def test_tiles_of_rows_of_blocks(rows: int, length: int, start: int) -> None:
    numel = rows * length
    tiles = build_tiles([numel], [Region(start, numel, 2 * numel)], [length])
    assert tiles["offset"].tolist() == [0, *np.cumsum(tiles["count"])[:-1].tolist()]
    assert tiles["count"].sum() == numel
    assert 0 < tiles["count"].min() <= tiles["count"].max() <= TILE_ELEMENTS
    for _, count, offset, whole in tiles.tolist():
        assert whole == start + offset
        assert offset % length % BLOCK == 0
        # whole rows, or a part of one
        in_row = offset % length
        assert (in_row == 0 and count % length == 0) or in_row + count <= length


@pytest.mark.parametrize("shape", [(64, 147), (3, 5000), (40, 9)])
def test_tiles_of_columns_that_end_a_row(shape: tuple[int, int]) -> None:
    """The last rank's columns: each row is a run, and its last block is not full."""
    rows, length = shape
    tiles = build_tiles([rows * length], [Region(32, length, length + 32)], [length])
    for _, count, offset, whole in tiles.tolist():
        row, column = divmod(offset, length)
        assert whole == 32 + row * (length + 32) + column
        assert column + count <= length
