"""How numbers of fewer bits are stored, in PyTorch: what is correct. csrc/codec.h does the same, bit for bit.

Everything takes and gives flat float32 tensors in the order of a parameter's memory. `random` is int64, of 16 random
bits for each element; `HALF` in its place rounds to nearest. docs/numerics.md derives the formats and their error
bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

HALF = torch.tensor(0x8000)  # what a random number is on the average
BLOCK = 32  # elements that share a scale
LARGEST_SCALE = 253


@dataclass(frozen=True)
class Code:
    """A floating format of 8 bits, for values from -1 to 1, or 0 to 1, in a block's own scale.

    A code is `exponent * 8 + fraction`, and where values have a sign 128 more for a negative one. It stands for
    `(8 + fraction) * 2**(exponent - one - 3)`, for exponent 0 for `fraction * 2**(-one - 2)`.

    Attributes:
        one: the exponent of 1.0.
        is_signed: whether values have a sign.
        keeps_positive: whether what is not zero may not become zero.
    """

    one: int
    is_signed: bool
    keeps_positive: bool

    @property
    def largest(self) -> int:
        """The code of the largest number; one more is infinity, and two more NaN."""
        return self.one * 8 + 5


# First moments and momentum: their sign and 15 octaves. Second moments are squares: 31 octaves, and none of them
# becomes zero, by whose root a first moment that did not would be divided.
FIRST_MOMENT = Code(one=15, is_signed=True, keeps_positive=False)
SECOND_MOMENT = Code(one=31, is_signed=False, keeps_positive=True)


def encode_blocks(x: Tensor, random: Tensor, code: Code) -> tuple[Tensor, Tensor]:
    """Codes and scales of float32 [n]: uint8 [n], and uint8 [ceil(n / BLOCK)].

    A scale s stands for `2**(s - 127)`, the least power of two that no finite number of the block exceeds; 0 for a
    block of zeros.
    """
    count = len(x)
    bits = x.view(torch.int32).to(torch.int64)
    magnitude = bits & 0x7FFFFFFF
    is_finite = magnitude < 0x7F800000
    padded = x.new_zeros(-(-count // BLOCK) * BLOCK, dtype=torch.int64)
    padded[:count] = torch.where(is_finite, magnitude, 0)
    largest = padded.view(-1, BLOCK).amax(1)
    scales = ((largest + 0x7FFFFF) >> 23).clamp(max=LARGEST_SCALE)
    inverse = _float(((254 - scales) << 23).repeat_interleave(BLOCK)[:count])
    y = _float(magnitude) * inverse
    # steps are those of the bits, but all alike where the exponent is 0, as if the leading one were there
    even = 2.0 ** (1 - code.one)
    is_even = y < even
    steps = (_bits(torch.where(is_even, y + even, y)) + (random << 4)) >> 20
    codes = (steps - 8 * (127 - code.one) - 8 * is_even).clamp(max=code.largest)
    if code.keeps_positive:
        codes = torch.where(magnitude > 0, codes.clamp(min=1), codes)
    special = torch.where(magnitude == 0x7F800000, code.largest + 1, code.largest + 2)
    codes = torch.where(is_finite, codes, special)
    if code.is_signed:
        # NaN has no sign: which one an operation gives it is not defined
        codes |= torch.where(magnitude <= 0x7F800000, (bits >> 24) & 0x80, 0)
    return codes.to(torch.uint8), scales.to(torch.uint8)


def decode_blocks(codes: Tensor, scales: Tensor, code: Code) -> Tensor:
    """The float32 [n] of `encode_blocks`."""
    wide = codes.to(torch.int64)
    magnitude = wide & 0x7F if code.is_signed else wide
    # exponent 0 is read as if it had the leading one of the others, which is then taken away
    y = _float((magnitude << 20) + ((127 - code.one) << 23))
    y = torch.where(magnitude < 8, (y - 2.0**-code.one) * 2.0, y)
    scale = _float(scales.to(torch.int64) << 23)
    x = y * scale.repeat_interleave(BLOCK)[: len(codes)]
    x = torch.where(magnitude == code.largest + 1, torch.inf, x)
    x = torch.where(magnitude == code.largest + 2, torch.nan, x)
    return torch.where(wide > 0x7F, -x, x) if code.is_signed else x


def to_bfloat16(x: Tensor, random: Tensor) -> Tensor:
    """The bfloat16 below or above float32 x, by chance in proportion; infinity and NaN stay what they are."""
    bits = x.view(torch.int32).to(torch.int64)
    rounded = (bits + random) & ~0xFFFF
    return torch.where(x.isfinite(), _float(rounded).to(torch.bfloat16), x.to(torch.bfloat16))


def to_float16(x: Tensor, random: Tensor) -> Tensor:
    """The float16 below or above float32 x, by chance in proportion; infinity and NaN stay what they are."""
    bits = x.view(torch.int32).to(torch.int64)
    magnitude = _float(bits & 0x7FFFFFFF)
    # where its steps are all alike, else they are steps of the bits themselves; 13 bits below a step are in both
    drawn = random >> 3
    steps = magnitude.clamp(max=1.0) * 2.0**24 + drawn.to(torch.float32) * 2.0**-13
    by_value = steps.floor() * 2.0**-24
    by_bits = _float(((bits & 0x7FFFFFFF) + drawn) & ~0x1FFF)
    rounded = torch.where(magnitude < 2.0**-14, by_value, by_bits).copysign(x)
    return torch.where(x.isfinite(), rounded, x).to(torch.float16)


def split(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """A bfloat16 part and a signed remainder of so many bits, 16 or 8: int16 or int8.

    The bfloat16 is the float32 weight rounded to nearest, ties away from zero, and the remainder is what its bits lack.
    With 8 bits the weight is rounded to its upper 24 first.
    """
    whole = weight.view(torch.int32).to(torch.int64)
    if bits == 8:
        whole = (whole + 0x80) & ~0xFF
    upper = (whole + 0x8000) >> 16
    remainder = whole - (upper << 16)
    is_nan = weight.isnan()
    part = torch.where(is_nan, torch.nan, _float(_wrapped(upper << 16)))
    remainder = torch.where(is_nan, 0, remainder)
    kind = torch.int16
    if bits == 8:
        remainder, kind = remainder >> 8, torch.int8
    return part.to(torch.bfloat16), remainder.to(kind)


def join(part: Tensor, remainder: Tensor) -> Tensor:
    """The float32 weight of `split`."""
    upper = part.view(torch.int16).to(torch.int64) << 16
    lower = remainder.to(torch.int64)
    if remainder.dtype is torch.int8:
        lower = lower << 8
    # no weight leaves a negative one beside a zero: somebody has written that zero since
    lower = torch.where((part == 0) & (lower < 0), 0, lower)
    return _float(_wrapped(upper + lower))


def _float(bits: Tensor) -> Tensor:
    """float32 of so many bits, int64."""
    return _wrapped(bits).to(torch.int32).view(torch.float32)


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32).to(torch.int64)


def _wrapped(bits: Tensor) -> Tensor:
    """int64 as the int32 that its lower half is."""
    return ((bits + 2**31) & 0xFFFFFFFF) - 2**31
