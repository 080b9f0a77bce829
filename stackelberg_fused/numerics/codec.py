"""Low-precision storage formats: the reference implementation in PyTorch. csrc/codec.h gives the same bits.

All functions encode from, or decode to, flat float32 tensors in the memory order of a parameter. `random` is int64 [n]
with 16 random bits per element; `HALF` in its place rounds to nearest. docs/numerics.md derives the formats and their
error bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HALF = torch.tensor(0x8000)  # the mean of a random number of 16 bits
BLOCK = 32  # elements that share a scale
LARGEST_SCALE = 253


@dataclass(frozen=True)
class Code:
    """An 8-bit floating-point format for values in [-1, 1], or [0, 1] if unsigned, relative to the scale of a block.

    A code is `exponent * 8 + fraction`; a negative value adds 128. Its value is
    `(8 + fraction) * 2**(exponent - one - 3)`, and for exponent 0 `fraction * 2**(-one - 2)`.

    Attributes:
        one: the exponent of 1.0.
        is_signed: True if values have a sign.
        keeps_positive: True if a nonzero value never rounds to zero.
    """

    one: int
    is_signed: bool
    keeps_positive: bool

    @property
    def largest(self) -> int:
        """The code of the largest finite number; `largest + 1` is infinity and `largest + 2` is NaN."""
        return self.one * 8 + 5


# First moments and momentum have a sign and 15 octaves. Second moments are squares and have 31 octaves. A second moment
# never rounds to zero: the update would divide a nonzero first moment by its root.
FIRST_MOMENT = Code(one=15, is_signed=True, keeps_positive=False)
SECOND_MOMENT = Code(one=31, is_signed=False, keeps_positive=True)


def encode_blocks(
    x: Tensor, random: Tensor, code: Code, row: int = 0
) -> tuple[Tensor, Tensor]:
    """Encode float32 [n] in blocks of `BLOCK` elements.

    Args:
        x: float32 [n].
        random: int64 [n], 16 random bits per element, or `HALF`.
        code: the format.
        row: elements of a row, which no block crosses; 0 if all are of one row, or rows have full blocks only.

    Returns:
        Codes, uint8 [n], and scales, uint8 [blocks], of all rows one after the other. A scale s means `2**(s - 127)`, the smallest power of two
        that no finite magnitude of the block exceeds; s = 0 for a block of zeros.
    """
    count = len(x)
    bits = x.view(torch.int32).to(torch.int64)
    magnitude = bits & 0x7FFFFFFF
    is_finite = magnitude < 0x7F800000
    row = row or max(count, 1)
    rows, blocks = count // row, -(-row // BLOCK)
    padded = x.new_zeros((rows, blocks * BLOCK), dtype=torch.int64)
    padded[:, :row] = torch.where(is_finite, magnitude, 0).view(rows, row)
    largest = padded.view(-1, BLOCK).amax(1)
    scales = ((largest + 0x7FFFFF) >> 23).clamp(max=LARGEST_SCALE)
    inverse = _float(of_elements((254 - scales) << 23, row))
    y = _float(magnitude) * inverse
    # rounding acts on the bits of y; adding the smallest normal number to a subnormal one gives it the right spacing
    smallest_normal = 2.0 ** (1 - code.one)
    is_subnormal = y < smallest_normal
    steps = (_bits(torch.where(is_subnormal, y + smallest_normal, y)) + (random << 4)) >> 20
    codes = (steps - 8 * (127 - code.one) - 8 * is_subnormal).clamp(max=code.largest)
    if code.keeps_positive:
        codes = torch.where(magnitude > 0, codes.clamp(min=1), codes)
    special = torch.where(magnitude == 0x7F800000, code.largest + 1, code.largest + 2)
    codes = torch.where(is_finite, codes, special)
    if code.is_signed:
        # no sign for NaN: the sign that an operation gives it is not defined
        codes |= torch.where(magnitude <= 0x7F800000, (bits >> 24) & 0x80, 0)
    return codes.to(torch.uint8), scales.to(torch.uint8)


def decode_blocks(codes: Tensor, scales: Tensor, code: Code, row: int = 0) -> Tensor:
    """Decode the codes, uint8 [n], and scales, uint8 [blocks], of `encode_blocks` to float32 [n]."""
    wide = codes.to(torch.int64)
    magnitude = wide & 0x7F if code.is_signed else wide
    # decode exponent 0 with the implicit leading one of the other exponents, then subtract it
    y = _float((magnitude << 20) + ((127 - code.one) << 23))
    y = torch.where(magnitude < 8, (y - 2.0**-code.one) * 2.0, y)
    scale = _float(scales.to(torch.int64) << 23)
    x = y * of_elements(scale, row or max(len(codes), 1))
    x = torch.where(magnitude == code.largest + 1, torch.inf, x)
    x = torch.where(magnitude == code.largest + 2, torch.nan, x)
    return torch.where(wide > 0x7F, -x, x) if code.is_signed else x


def of_elements(of_block: Tensor, row: int) -> Tensor:
    """Repeat a number of each block for its elements.

    Args:
        of_block: [blocks], of all rows one after the other.
        row: elements of a row, whose last block may have less than `BLOCK`.
    """
    blocks = -(-row // BLOCK)
    return of_block.repeat_interleave(BLOCK).view(-1, blocks * BLOCK)[:, :row].reshape(-1)


def to_bfloat16(x: Tensor, random: Tensor) -> Tensor:
    """Round float32 [n] stochastically to one of the two neighbouring bfloat16 numbers; the mean of the result is x.

    `random` is int64 [n], 16 random bits per element, or `HALF`. Infinity and NaN stay unchanged.
    """
    bits = x.view(torch.int32).to(torch.int64)
    rounded = (bits + random) & ~0xFFFF
    return torch.where(x.isfinite(), _float(rounded).to(torch.bfloat16), x.to(torch.bfloat16))


def to_float16(x: Tensor, random: Tensor) -> Tensor:
    """Round float32 [n] stochastically to float16, as `to_bfloat16`, by the upper 13 of the 16 random bits."""
    bits = x.view(torch.int32).to(torch.int64)
    magnitude = _float(bits & 0x7FFFFFFF)
    # subnormal float16 numbers are evenly spaced: round the value; round the bits of the others. Both use 13 bits.
    random13 = random >> 3
    steps = magnitude.clamp(max=1.0) * 2.0**24 + random13.to(torch.float32) * 2.0**-13
    subnormal = steps.floor() * 2.0**-24
    normal = _float(((bits & 0x7FFFFFFF) + random13) & ~0x1FFF)
    rounded = torch.where(magnitude < 2.0**-14, subnormal, normal).copysign(x)
    return torch.where(x.isfinite(), rounded, x).to(torch.float16)


def split(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Split float32 weights into bfloat16 and a signed remainder of 16 or 8 bits.

    Args:
        weight: float32 [n].
        bits: of the remainder, 16 or 8.

    Returns:
        bfloat16 [n], the weight rounded to nearest with ties away from zero; and int16 [n] or int8 [n], the difference
        of the float32 bits to those of the bfloat16. With 8 bits the weight is first rounded to its upper 24 bits.
    """
    whole = weight.view(torch.int32).to(torch.int64)
    if bits == 8:
        whole = (whole + 0x80) & ~0xFF
    upper = (whole + 0x8000) >> 16
    remainder = whole - (upper << 16)
    is_nan = weight.isnan()
    part = torch.where(is_nan, torch.nan, _float(_wrapped(upper << 16)))
    remainder = torch.where(is_nan, 0, remainder)
    dtype = torch.int16
    if bits == 8:
        remainder, dtype = remainder >> 8, torch.int8
    return part.to(torch.bfloat16), remainder.to(dtype)


def join(part: Tensor, remainder: Tensor) -> Tensor:
    """Return the float32 weight [n] of the bfloat16 part and the remainder of `split`."""
    upper = part.view(torch.int16).to(torch.int64) << 16
    lower = remainder.to(torch.int64)
    if remainder.dtype is torch.int8:
        lower = lower << 8
    # `split` gives no zero a negative remainder: such a zero was written later, so its remainder does not count
    lower = torch.where((part == 0) & (lower < 0), 0, lower)
    return _float(_wrapped(upper + lower))


def _float(bits: Tensor) -> Tensor:
    """Return the float32 values with the given bits, int64."""
    return _wrapped(bits).to(torch.int32).view(torch.float32)


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32).to(torch.int64)


def _wrapped(bits: Tensor) -> Tensor:
    """Wrap int64 to the range of int32, keeping the lower 32 bits."""
    return ((bits + 2**31) & 0xFFFFFFFF) - 2**31
