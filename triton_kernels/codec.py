"""Codes of numbers that are stored in fewer bits, in Triton: csrc/codec.h, bit for bit.

Blocks of any shape; `random` are uint32, of 16 random bits each. Numbers of 16 bits are uint16, codes and remainders of
8 bits uint8, as they lie in memory.
"""

import triton
import triton.language as tl

from ..numerics import codec

BLOCK: tl.constexpr = tl.constexpr(codec.BLOCK)  # elements that share a scale

MAGNITUDE: tl.constexpr = tl.constexpr(0x7FFFFFFF)
INFINITY: tl.constexpr = tl.constexpr(0x7F800000)


@triton.jit
def bits_of(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def from_bfloat16(x):
    return float_of(x.to(tl.uint32) << 16)


@triton.jit
def to_bfloat16(x):
    """To nearest, ties to even."""
    bits = bits_of(x)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where((bits & MAGNITUDE) > INFINITY, 0x7FC0, rounded).to(tl.uint16)


@triton.jit
def to_bfloat16_by_chance(x, random):
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    rounded = tl.where(magnitude < INFINITY, bits + random, bits)
    return (tl.where(magnitude > INFINITY, 0x7FC00000, rounded) >> 16).to(tl.uint16)


@triton.jit
def from_float16(x):
    return x.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def to_float16(x):
    """To nearest, ties to even."""
    bits = bits_of(x)
    rounded = x.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
    nan = 0x7E00 | ((bits >> 16) & 0x8000)
    return tl.where((bits & MAGNITUDE) > INFINITY, nan, rounded).to(tl.uint16)


@triton.jit
def to_float16_by_chance(x, random):
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    drawn = random >> 3
    # where its steps are all alike, else they are steps of the bits themselves; 13 bits below a step are in both
    small = float_of(tl.where(magnitude < 0x3F800000, magnitude, 0x3F800000))
    steps = (small * 16777216.0 + drawn.to(tl.float32) * 0.0001220703125).to(tl.int32)
    by_value = bits_of(steps.to(tl.float32) * 5.9604644775390625e-08)
    by_bits = tl.where(magnitude < INFINITY, (magnitude + drawn) & 0xFFFFE000, magnitude)
    rounded = tl.where(magnitude < 0x38800000, by_value, by_bits)
    return to_float16(float_of(rounded | (bits & 0x80000000)))


@triton.jit
def split(weight, BITS: tl.constexpr):
    """A bfloat16 part, to nearest and ties away from zero, and a remainder of 16 or 8 bits."""
    whole = bits_of(weight)
    is_nan = (whole & MAGNITUDE) > INFINITY
    if BITS == 8:
        whole = (whole + 0x80) & 0xFFFFFF00
    upper = (whole + 0x8000) >> 16
    part = tl.where(is_nan, 0x7FC0, upper).to(tl.uint16)
    remainder = tl.where(is_nan, 0, (whole - (upper << 16)) >> (16 - BITS))
    if BITS == 8:
        return part, (remainder & 0xFF).to(tl.uint8)
    else:
        return part, (remainder & 0xFFFF).to(tl.uint16)


@triton.jit
def join(part, remainder, BITS: tl.constexpr):
    """Return the weight of `split`."""
    if BITS == 8:
        signed = remainder.to(tl.int8, bitcast=True).to(tl.int32)
    else:
        signed = remainder.to(tl.int16, bitcast=True).to(tl.int32)
    # no weight leaves a negative one beside a zero: somebody has written that zero since
    is_written = ((part & 0x7FFF) == 0) & (signed < 0)
    lower = tl.where(is_written, 0, signed).to(tl.uint32, bitcast=True) << (16 - BITS)
    return float_of((part.to(tl.uint32) << 16) + lower)


@triton.jit
def half_step(stored, IS_BFLOAT16: tl.constexpr):
    """Return the most that rounding takes from a weight: half a step of its stored number."""
    exponent = bits_of(stored) & INFINITY
    if IS_BFLOAT16:
        return float_of(tl.where(exponent > 0x00800000, exponent, 0x00800000)) * 0.00390625
    else:
        return float_of(tl.where(exponent > 0x38800000, exponent, 0x38800000)) * 0.00048828125


@triton.jit
def compensated(stored, lost, IS_BFLOAT16: tl.constexpr):
    """The weight before rounding: the stored one and what it lost.

    A loss larger than rounding can cause belongs to an earlier weight, which somebody has replaced since.
    """
    magnitude = float_of(bits_of(lost) & MAGNITUDE)
    return stored + tl.where(magnitude <= half_step(stored, IS_BFLOAT16), lost, 0.0)


@triton.jit
def compensation(weight, stored):
    """Return the part of a weight that rounding took; 0 where it is not finite."""
    lost = weight - stored
    return tl.where((bits_of(lost) & MAGNITUDE) < INFINITY, lost, 0.0)


@triton.jit
def scales_of(x):
    """Return the scales of float32 [blocks, BLOCK], uint32 [blocks]; where there is no element x is 0."""
    magnitude = bits_of(x) & MAGNITUDE
    finite = tl.where(magnitude < INFINITY, magnitude, 0).to(tl.int32, bitcast=True)
    scale = (tl.max(finite, axis=1) + 0x7FFFFF) >> 23
    return tl.where(scale < 253, scale, 253).to(tl.uint32, bitcast=True)


# Codes are `exponent * 8 + fraction`; ONE is the exponent of 1.0 in the block's scale: 15 for first moments, which have
# a sign beside, 31 for second moments, of which no positive one becomes zero. The one after the largest is infinity,
# and NaN the next. Where a float32 has its own fields these are but for a power of two, also where both are subnormal:
# so a multiplication puts them there, and another takes them away.
@triton.jit
def encode(x, scales, random, ONE: tl.constexpr):
    """Codes of float32 [blocks, BLOCK] with scales uint32 [blocks]."""
    UNIT: tl.constexpr = 2.0 ** (ONE - 127)
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    y = float_of(magnitude) * float_of((254 - scales) << 23)[:, None] * UNIT
    code = (bits_of(y) + (random << 4)) >> 20
    if ONE == 31:
        code = tl.where((code == 0) & (magnitude > 0), 1, code)
    code = tl.where(code < 8 * ONE + 5, code, 8 * ONE + 5)
    special = tl.where(magnitude == INFINITY, 8 * ONE + 6, 8 * ONE + 7).to(tl.uint32)
    code = tl.where(magnitude < INFINITY, code, special)
    if ONE == 15:
        # NaN has no sign: which one an operation gives it is not defined
        code = code | tl.where(magnitude <= INFINITY, (bits >> 24) & 0x80, 0)
    return code.to(tl.uint8)


@triton.jit
def decode(codes, scales, ONE: tl.constexpr):
    """float32 [blocks, BLOCK] of `encode`."""
    UNIT: tl.constexpr = 2.0 ** (127 - ONE)
    code = codes.to(tl.uint32)
    if ONE == 15:
        magnitude = code & 0x7F
        sign = (code & 0x80) << 24
    else:
        magnitude = code
        sign = code & 0
    finite = bits_of(float_of(magnitude << 20) * UNIT * float_of(scales << 23)[:, None])
    special = tl.where(magnitude == 8 * ONE + 6, INFINITY, 0x7FC00000).to(tl.uint32)
    return float_of(tl.where(magnitude > 8 * ONE + 5, special, finite) | sign)
