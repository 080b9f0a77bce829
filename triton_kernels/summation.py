"""Sums of squares in the order of csrc/summation.h: the same bits on every native backend."""

import triton
import triton.language as tl

from ..numerics import summation
from .access import pointers

LANES: tl.constexpr = tl.constexpr(summation.LANES)
LANE_BITS: tl.constexpr = tl.constexpr(summation.LANES.bit_length() - 1)


@triton.jit
def fold(lanes):
    """Add the upper half of the lanes onto the lower until one is left: a sum of two has no order of its own."""
    for bit in tl.static_range(1, LANE_BITS + 1):
        lanes = tl.sum(tl.reshape(lanes, (2, LANES >> bit)), 0)
    return tl.sum(lanes, 0)


@triton.jit
def fold_parts(parts):
    """Return the sum of 4 * LANES parts: of a lane's four as (0 + 2) + (1 + 3)."""
    pairs = tl.sum(tl.reshape(parts, (LANES, 2, 2)), 1)
    return fold(tl.sum(pairs, 1))


@triton.jit
def _squares(address, offset, count, start):
    within = start + tl.arange(0, 4 * LANES)
    x = tl.load(pointers(address, offset + within, False), mask=within < count, other=0.0)
    wide = x.to(tl.float64)
    return wide * wide


@triton.jit
def sum_of_squares(address, offset, count, TILE: tl.constexpr):
    """Sum the squares of a tile's elements; `count`: how many are left from its offset on."""
    parts = _squares(address, offset, count, 0)
    for start in tl.static_range(4 * LANES, TILE, 4 * LANES):
        parts += _squares(address, offset, count, start)
    return fold_parts(parts)


@triton.jit
def sum_of_sums(sums, begin, end):
    """Add up the entries [begin, end), which other programs wrote."""
    lane = tl.arange(0, LANES)
    lanes = tl.zeros((LANES,), tl.float64)
    for start in range(begin, end, LANES):
        entry = start + lane
        # not from the first-level cache, which other programs' stores do not reach
        lanes += tl.load(sums + entry, mask=entry < end, other=0.0, cache_modifier=".cg")
    return fold(lanes)
