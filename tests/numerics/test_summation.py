"""Sums of squares in a stated order, beside exact sums."""

from __future__ import annotations

import math

import pytest
import torch

from stackelberg_fused.native.tables import TILE_ELEMENTS
from stackelberg_fused.numerics.summation import LANES, sum_of, tile_sums


@pytest.mark.parametrize("count", [0, 1, 5, TILE_ELEMENTS, TILE_ELEMENTS + 1, 3 * TILE_ELEMENTS])
def test_each_tile_has_its_sum(count: int) -> None:
    elements = torch.randn(count)
    sums = tile_sums(elements)
    tiles = elements.split(TILE_ELEMENTS) if count else ()
    exact = [math.fsum(x * x for x in tile.double().tolist()) for tile in tiles]
    assert sums.dtype is torch.float64
    assert sums.tolist() == pytest.approx(exact, rel=1e-14)
    assert float(sum_of(sums)) == pytest.approx(math.fsum(exact), rel=1e-14)


def test_lanes_are_added_by_halving() -> None:
    """Lane 0 meets lane 128 first: what cancels there leaves nothing that would round a small entry away."""
    sums = torch.zeros(LANES, dtype=torch.float64)
    sums[0], sums[1], sums[LANES // 2] = 2.0**60, 1.0, -(2.0**60)
    assert float(sum_of(sums)) == 1.0
    sums[LANES // 2], sums[2] = 0.0, -(2.0**60)
    assert float(sum_of(sums)) == 1.0
    sums[2], sums[3] = 0.0, -(2.0**60)
    assert float(sum_of(sums)) == 0.0


def test_of_four_elements_the_even_ones_are_added_first() -> None:
    elements = torch.zeros(4)
    elements[0], elements[1], elements[2] = 2.0**26, 0.5, 0.5
    # 2**52 + 0.25 rounds to 2**52; 0.5 would not
    assert float(tile_sums(elements)) == 2.0**52
    assert float(tile_sums(elements.double())) == 2.0**52
