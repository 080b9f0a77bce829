"""What instructions give, by Python's integers: the definitions that tests compare with. Nothing here is vectorised."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import isqrt

import numpy as np
from numpy.typing import NDArray

NAN = -1  # of any payload


@dataclass(frozen=True)
class Format:
    """Numbers of IEEE 754, as words. A finite one is an integer times 2^-least.

    Attributes:
        width: bits of a word.
        digits: of a significand.
        least: minus the exponent of the smallest number.
    """

    width: int
    digits: int
    least: int

    @property
    def infinity(self) -> int:
        return (1 << (self.width - 1)) - (1 << (self.digits - 1))

    def sign(self, word: int) -> int:
        return word >> (self.width - 1)

    def magnitude(self, word: int) -> int:
        return word & ((1 << (self.width - 1)) - 1)

    def is_nan(self, word: int) -> bool:
        return self.magnitude(word) > self.infinity

    def is_infinite(self, word: int) -> bool:
        return self.magnitude(word) == self.infinity

    def signed(self, magnitude: int, sign: int) -> int:
        return magnitude | sign << (self.width - 1)

    def units(self, word: int) -> int:
        """How many times 2^-least a finite number is."""
        fraction = self.digits - 1
        exponent = self.magnitude(word) >> fraction
        significand = word & ((1 << fraction) - 1)
        if exponent:
            significand = (significand | 1 << fraction) << (exponent - 1)
        return -significand if self.sign(word) else significand

    def value(self, word: int) -> Fraction:
        return Fraction(self.units(word), 1 << self.least)

    def rounded(self, n: int, scale: int, *, towards_zero: bool = False) -> int:
        """n * 2^-scale (scale >= least), rounded: to the nearest, ties to even, or towards zero. Of 0: +0."""
        dropped = max(abs(n).bit_length() - self.digits, scale - self.least)
        kept, rest = divmod(abs(n), 1 << dropped)
        half = 1 << dropped >> 1
        if not towards_zero and dropped and (rest > half or (rest == half and kept & 1)):
            kept += 1
        word = kept + ((dropped - scale + self.least) << (self.digits - 1))
        most = self.infinity - (1 if towards_zero else 0)
        return self.signed(min(word, most), int(n < 0))

    def fma(self, a: int, b: int, c: int) -> int:
        """a * b + c, rounded once."""
        if any(map(self.is_nan, (a, b, c))):
            return NAN
        sign = self.sign(a) ^ self.sign(b)
        if self.is_infinite(a) or self.is_infinite(b):
            if not (self.magnitude(a) and self.magnitude(b)):
                return NAN
            if self.is_infinite(c) and self.sign(c) != sign:
                return NAN
            return self.signed(self.infinity, sign)
        if self.is_infinite(c):
            return c
        exact = self.units(a) * self.units(b) + (self.units(c) << self.least)
        if not exact:
            is_sum_of_zeros = not self.units(a) * self.units(b)
            return self.signed(0, sign & self.sign(c) if is_sum_of_zeros else 0)
        return self.rounded(exact, 2 * self.least)

    def add(self, a: int, b: int) -> int:
        return self.fma(a, self.one, b)

    def subtract(self, a: int, b: int) -> int:
        return NAN if self.is_nan(b) else self.add(a, b ^ 1 << (self.width - 1))

    def multiply(self, a: int, b: int) -> int:
        sign = self.sign(a) ^ self.sign(b)
        return self.fma(a, b, self.signed(0, sign))

    @property
    def one(self) -> int:
        return self.rounded(1 << self.least, self.least)

    def divide(self, a: int, b: int) -> int:
        if self.is_nan(a) or self.is_nan(b):
            return NAN
        sign = self.sign(a) ^ self.sign(b)
        if self.is_infinite(a) or self.is_infinite(b):
            if self.is_infinite(a) and self.is_infinite(b):
                return NAN
            return self.signed(self.infinity if self.is_infinite(a) else 0, sign)
        if not self.magnitude(b):
            return self.signed(self.infinity, sign) if self.magnitude(a) else NAN
        scale = 4 * self.least
        quotient, rest = divmod(abs(self.units(a)) << scale, abs(self.units(b)))
        return self.signed(self.rounded(quotient << 1 | bool(rest), scale + 1), sign)

    def root(self, a: int) -> int:
        if self.is_nan(a) or (self.sign(a) and self.magnitude(a)):
            return NAN
        if not self.magnitude(a) or self.is_infinite(a):
            return a
        # isqrt(x * 2^(least + 2 k)) is the root in units of 2^-(least + k)
        shifted = self.units(a) << (self.least + 2 * self.least)
        root = isqrt(shifted)
        return self.rounded(root << 1 | (root * root != shifted), 2 * self.least + 1)


F16, BF16 = Format(16, 11, 24), Format(16, 8, 133)
F32, F64 = Format(32, 24, 149), Format(64, 53, 1074)
FORMATS = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64}
CANONICAL = {F16: 0x7FFF, BF16: 0x7FFF, F32: 0x7FFFFFFF}


def words(values: list[int], form: Format) -> NDArray[np.unsignedinteger]:
    """Words as an array; NAN as what GPUs give."""
    nan = CANONICAL.get(form, form.infinity + 1)
    return np.array([nan if v == NAN else v for v in values], f"u{form.width // 8}")


def same(found: NDArray[np.generic], expected: list[int], form: Format) -> bool:
    """Whether the words are these; of float64, whose NaNs have a payload, any NaN is one."""
    got = found.view(f"u{form.width // 8}")
    wanted = words(expected, form)
    equal = got == wanted
    if form not in CANONICAL:
        equal |= np.isnan(got.view(np.float64)) & np.isnan(wanted.view(np.float64))
    return bool(equal.all())


def wrapped(x: int, dtype: type) -> int:
    """An integer in a type's range, modulo two to the power of its width."""
    info = np.iinfo(dtype)
    return (x - int(info.min)) % (1 << info.bits) + int(info.min)


def integers(dtype: type) -> NDArray[np.integer]:
    """Where integers of a type behave unlike others: near zero, near powers of two, near the limits."""
    bits = np.iinfo(dtype).bits
    near = {(sign << k) + d for k in range(0, bits, 3) for sign in (1, -1) for d in (-1, 0, 1)}
    near |= {0, 5, 7, 100, 255, (1 << bits) - 2, 1 << (bits - 1), (1 << (bits - 1)) - 1}
    return np.array(sorted({wrapped(x, dtype) for x in near}), dtype)


def floats(form: Format) -> list[int]:
    """Words that behave unlike others: zeros, subnormals, powers of two and their neighbours, infinities, NaN."""
    fraction = form.digits - 1
    most = form.infinity >> fraction
    exponents = (0, 1, 2, most // 2 - fraction, most // 2 - 1, most // 2, most // 2 + 1, most - 1)
    found = {e << fraction | m for e in exponents for m in (0, 1, 2, (1 << fraction) - 1)}
    found |= {form.infinity, form.infinity | 1, form.infinity | 1 << (fraction - 1)}
    return sorted(found) + [form.signed(w, 1) for w in sorted(found)]


def pairs(values: NDArray[np.generic]) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    """Each with each."""
    first, second = np.meshgrid(values, values, indexing="ij")
    return first.ravel(), second.ravel()
