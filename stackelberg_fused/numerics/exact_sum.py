"""Exact sums of squares as integers in the digits of base 2^32: csrc/exact_sum.h in PyTorch, for every real dtype.

Integers may be added in any order, so a sum has the same digits however its numbers are distributed: over tensors,
devices or ranks. `rounded` makes it one float64, the nearest.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Digit i counts units of 2 ** (LOWEST_EXPONENT + 32 * i). Squares of float64 numbers lie between 2 ** -2148 and
# 2 ** 2048; the parts of one may begin below.
DIGIT_BITS = 32
LOWEST_EXPONENT = -2272
DIGITS = 136
# beside the digits: how many numbers were infinite, and how many NaN
INFINITIES, NANS = DIGITS, DIGITS + 1
WORDS = DIGITS + 2

# the kernels' own sums, whose digits are some of these: squares of float32 numbers need no others
KERNEL_DIGITS = 23
KERNEL_WORDS = KERNEL_DIGITS + 2
FIRST_KERNEL_DIGIT = 59
LOWEST_KERNEL_EXPONENT = LOWEST_EXPONENT + DIGIT_BITS * FIRST_KERNEL_DIGIT
COPIES = 16  # that a sum is spread over while blocks add to it

_MASK = 2**DIGIT_BITS - 1
_AT_ONCE = 2**24  # elements, whose digits int64 has room for
_MANTISSA_BITS = 53
_HALF_BITS = 27


def sum_of_squares(elements: Tensor) -> Tensor:
    """Return the exact sum of the squares of some numbers.

    Args:
        elements: any shape, any real dtype.

    Returns:
        int64 [WORDS]: digits in [0, 2 ** 32), and the counts of INFINITIES and NANS.
    """
    words = torch.zeros(WORDS, dtype=torch.int64, device=elements.device)
    for part in elements.detach().reshape(-1).split(_AT_ONCE):
        _add_squares(words, part.double().abs())
        words = carried(words)
    return words


def _add_squares(words: Tensor, x: Tensor) -> None:
    words[INFINITIES] += (x == math.inf).sum()
    words[NANS] += x.isnan().sum()
    mantissa, exponent = torch.frexp(torch.where(x < math.inf, x, 0.0))
    whole = (mantissa * 2.0**_MANTISSA_BITS).long()
    # x is whole * 2 ** unit, and its square has three products, each of at most 54 bits
    unit = exponent.long() - _MANTISSA_BITS
    high, low = whole >> _HALF_BITS, whole & (2**_HALF_BITS - 1)
    _add(words, low * low, 2 * unit)
    _add(words, high * low, 2 * unit + _HALF_BITS + 1)
    _add(words, high * high, 2 * unit + 2 * _HALF_BITS)


def _add(words: Tensor, numbers: Tensor, exponents: Tensor) -> None:
    """Add numbers * 2 ** exponents, numbers at least 0 and of at most 54 bits: a digit and a part of the next two."""
    place = (exponents - LOWEST_EXPONENT).clamp(min=0)  # what would lie below is 0
    first, shift = place // DIGIT_BITS, place % DIGIT_BITS
    low = (numbers & _MASK) << shift
    high = (numbers >> DIGIT_BITS) << shift
    for k, digit in enumerate(
        (low & _MASK, (low >> DIGIT_BITS) + (high & _MASK), high >> DIGIT_BITS)
    ):
        words.index_add_(0, first + k, digit)


def rounded(words: Tensor) -> Tensor:
    """Return sums as float64, rounded to nearest and ties to even; infinite or NaN if one of the numbers was.

    Below 2 ** -1022 float64 has fewer bits, to which the result is rounded once more.

    Args:
        words: int64 [..., WORDS], as of `sum_of_squares` or several of those added up.

    Returns:
        float64 [...].
    """
    digits = carried(words)[..., :DIGITS]
    place = torch.arange(DIGITS, device=words.device)
    leading = torch.where(digits != 0, place, 0).amax(-1)  # the highest digit that is not zero
    below = (leading.unsqueeze(-1) - torch.arange(3, device=words.device)).clamp(min=0)
    first, second, third = digits.gather(-1, below).unbind(-1)
    second, third = second * (leading > 0), third * (leading > 1)
    more = ((digits != 0) & (place < leading.unsqueeze(-1) - 2)).any(-1)
    # 62 bits hold the first digit and what follows it; the last one stands for all that is lost
    bits = torch.frexp(first.double()).exponent.long()
    rest = second << 31 | third >> 1
    lost = (rest & ((1 << (bits + 1)) - 1)) | (third & 1)
    top = first << (62 - bits) | rest >> (bits + 1) | ((lost != 0) | more)
    exponent = LOWEST_EXPONENT + DIGIT_BITS * leading - (62 - bits)
    value = top.double()
    for _ in range(4):  # a power of two that float64 has can be as far away as three of them
        part = exponent.clamp(-600, 600)
        value, exponent = value * torch.exp2(part.double()), exponent - part
    value = torch.where(words[..., INFINITIES] > 0, math.inf, value)
    return torch.where(words[..., NANS] > 0, math.nan, value)


def root(x: Tensor) -> Tensor:
    """Return the square root of float64 numbers, rounded to nearest.

    torch's own is an ulp off for one of sixty on a CPU where MKL computes it.
    """
    return x.sqrt() if x.device.type != "cpu" else torch.from_numpy(np.sqrt(x.numpy()))


def carried(words: Tensor) -> Tensor:
    """Return sums of which every digit has been carried into those above it, so that it is in [0, 2 ** 32).

    Args:
        words: int64 [..., WORDS].
    """
    digits = words[..., :DIGITS]
    for _ in range(2):  # after which they are at most 2 ** 32
        carry = torch.nn.functional.pad((digits >> DIGIT_BITS)[..., :-1], (1, 0))
        digits = (digits & _MASK) + carry
    # what is left to carry is 1, and digits of 2 ** 32 - 1 pass it on: it comes from the last other one below
    place = torch.arange(DIGITS, device=digits.device).expand(digits.shape)
    source = torch.where(digits == _MASK, -1, place).cummax(-1).values
    carry = (digits >> DIGIT_BITS).gather(-1, source.clamp(min=0)) * (source >= 0)
    carry = torch.nn.functional.pad(carry[..., :-1], (1, 0))
    return torch.cat([(digits + carry) & _MASK, words[..., DIGITS:]], -1)
