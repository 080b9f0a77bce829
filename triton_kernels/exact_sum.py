"""Exact sums of squares: csrc/exact_sum.h in Triton, so the same bits on every backend.

A square is exact in float64. Adding 1.5 * 2 ** (52 + grid) rounds it to a multiple of 2 ** grid, which the bits of the
result count, and what is left over is exact again. So squares are taken apart into slices, whose counts are integers
and may be added in any order.
"""

import triton
import triton.language as tl

from ..numerics import exact_sum

DIGIT_BITS: tl.constexpr = tl.constexpr(exact_sum.DIGIT_BITS)
DIGIT_MASK: tl.constexpr = tl.constexpr(2**exact_sum.DIGIT_BITS - 1)
KERNEL_DIGITS: tl.constexpr = tl.constexpr(exact_sum.KERNEL_DIGITS)
KERNEL_WORDS: tl.constexpr = tl.constexpr(exact_sum.KERNEL_WORDS)
FIRST_KERNEL_DIGIT: tl.constexpr = tl.constexpr(exact_sum.FIRST_KERNEL_DIGIT)
INFINITIES: tl.constexpr = tl.constexpr(exact_sum.INFINITIES)
WORDS: tl.constexpr = tl.constexpr(exact_sum.WORDS)
COPIES: tl.constexpr = tl.constexpr(exact_sum.COPIES)
LOWEST: tl.constexpr = tl.constexpr(exact_sum.LOWEST_KERNEL_EXPONENT)
INFINITY_BITS: tl.constexpr = tl.constexpr(0x7F800000)
LARGEST_BITS: tl.constexpr = tl.constexpr(0x7FFFFFFF)
SLICE_BITS: tl.constexpr = tl.constexpr(51)
COUNTED_BITS: tl.constexpr = tl.constexpr(50)  # of a slice that is summed up over a tile


@triton.jit
def _add_part(sums, k, exponent):
    """Add k * 2 ** exponent: csrc's part_of()."""
    place = exponent - LOWEST
    digit = sums + place // DIGIT_BITS
    shift = (place % DIGIT_BITS).to(tl.int64)
    low = (k & DIGIT_MASK) << shift
    high = (k >> DIGIT_BITS) << shift
    tl.atomic_add(digit, low & DIGIT_MASK, sem="relaxed")
    tl.atomic_add(digit + 1, (low >> DIGIT_BITS) + (high & DIGIT_MASK), sem="relaxed")
    tl.atomic_add(digit + 2, high >> DIGIT_BITS, sem="relaxed")


@triton.jit
def add_squares(sums, x):
    """Add the squares of a block of at most a tile of float32 numbers to a sum in global memory (int64 pointer)."""
    magnitude = x.to(tl.int32, bitcast=True) & LARGEST_BITS
    most = tl.max(magnitude, 0)
    least = tl.min(tl.where(magnitude == 0, LARGEST_BITS, magnitude), 0)
    if most >= INFINITY_BITS:
        infinities = tl.sum((magnitude == INFINITY_BITS).to(tl.int64), 0)
        nans = tl.sum((magnitude > INFINITY_BITS).to(tl.int64), 0)
        tl.atomic_add(sums + KERNEL_DIGITS, infinities, sem="relaxed")
        tl.atomic_add(sums + KERNEL_DIGITS + 1, nans, sem="relaxed")
    elif most > 0:
        wide = x.to(tl.float64)
        rest = wide * wide
        # squares are at most 2 ** (grid + 50), and multiples of 2 ** lowest; subnormal numbers have exponent 1
        grid = 2 * (tl.maximum(most >> 23, 1) - 126) - COUNTED_BITS
        lowest = 2 * (tl.maximum(least >> 23, 1) - 150)
        remains = most > 0
        while remains:
            zero = ((grid + (52 + 1023)).to(tl.int64) << 52) | (1 << 51)
            to_grid = zero.to(tl.float64, bitcast=True)
            rounded = rest + to_grid
            _add_part(sums, tl.sum(rounded.to(tl.int64, bitcast=True) - zero, 0), grid)
            rest = rest - (rounded - to_grid)
            remains = grid > lowest
            grid = grid - SLICE_BITS


@triton.jit
def _collect(sums, copies):
    """Add up the copies of a word, to which other programs have added, and clear them."""
    # not from the first-level cache, which other programs' atomics do not reach
    total = tl.sum(tl.load(sums + copies, cache_modifier=".cg"), 0)
    # every warp loads the copies, and only one of them clears each
    tl.debug_barrier()
    tl.store(sums + copies, tl.zeros((COPIES,), tl.int64))
    return total


@triton.jit
def conclude_sum(sums, stride, digits):
    """Return a sum as float64: csrc's round_sum() and store_for_host().

    Args:
        sums: int64 pointer to the first of its copies, `stride` words apart. They are zero afterwards.
        digits: int64 pointer to WORDS that the host reads.
    """
    copies = tl.arange(0, COPIES) * stride
    nans = _collect(sums + KERNEL_DIGITS + 1, copies)
    infinities = _collect(sums + KERNEL_DIGITS, copies)
    zero = nans - nans
    # Triton takes for a constant what has the same value, by identity, before and after one round. `below_that` becomes
    # what `below` was: both must not begin as one value
    below, below_that = nans - nans, infinities - infinities
    carried, more = zero, zero
    # of the highest digit that is not zero: its place, it, those below it, and whether there are more
    place, first, second, third, lost = zero, zero, zero, zero, zero
    for i in range(KERNEL_DIGITS):
        total = _collect(sums + i, copies) + carried
        here = total & DIGIT_MASK
        carried = total >> DIGIT_BITS
        tl.store(digits + FIRST_KERNEL_DIGIT + i, here)
        place = tl.where(here != 0, zero + i, place)
        first = tl.where(here != 0, here, first)
        second = tl.where(here != 0, below, second)
        third = tl.where(here != 0, below_that, third)
        lost = tl.where(here != 0, more, lost)
        more = more | below_that
        below_that = below
        below = here
    tl.store(digits + INFINITIES, infinities)
    tl.store(digits + INFINITIES + 1, nans)
    # 62 bits hold the first digit and what follows it; the last one stands for all that is lost
    bits = (first.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1022
    bits = tl.where(first != 0, bits, 1)
    rest = (second << 31) | (third >> 1)
    lost = lost | (rest & ((1 << (bits + 1)) - 1)) | (third & 1)
    top = (first << (62 - bits)) | (rest >> (bits + 1)) | (lost != 0).to(tl.int64)
    power = (LOWEST + DIGIT_BITS * place - (62 - bits) + 1023) << 52
    value = top.to(tl.float64) * power.to(tl.float64, bitcast=True)
    value = tl.where(infinities > 0, float("inf"), value)
    return tl.where(nans > 0, float("nan"), value)
