"""Sums of the rows of a simplex in the order of csrc/summation.h: the same bits on every native backend."""

import triton
import triton.language as tl

LANES: tl.constexpr = tl.constexpr(256)
LANE_BITS: tl.constexpr = tl.constexpr(8)


@triton.jit
def fold(lanes):
    """Add the upper half of the lanes onto the lower until one is left: a sum of two has no order of its own."""
    for bit in tl.static_range(1, LANE_BITS + 1):
        lanes = tl.sum(tl.reshape(lanes, (2, LANES >> bit)), 0)
    return tl.sum(lanes, 0)
