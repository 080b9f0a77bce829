"""Floating-point arithmetic with the bits that the ISA asks for (sections 9.7.3 and 9.7.9, cvt).

NumPy's float32 and float64 sums, products, quotients and roots are IEEE 754's, rounded to nearest even, as .rn asks.
Results that are NaN become the canonical NaN where the operation is one of float32 (section 9.7.3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

# Which NaN a float32 instruction gives the ISA leaves open (section 9.7.3); this is the one of all GPUs. For half
# precision it names it (section 9.7.4). Those of float64 keep their operands' payload, in NumPy too.
CANONICAL_NAN = {
    np.dtype(np.float32): np.uint32(0x7FFFFFFF),
    np.dtype(np.float16): np.uint16(0x7FFF),
}


def canonical(result: NDArray[np.floating]) -> NDArray[np.floating]:
    """Replace every NaN of a result in float32 or float16 by the one that GPUs give."""
    nan = CANONICAL_NAN.get(result.dtype)
    if nan is None:
        return result
    is_nan = np.isnan(result)
    if not is_nan.any():
        return result
    return np.where(is_nan, nan, result.view(nan.dtype)).view(result.dtype)


def fma(a: Float32, b: Float32, c: Float32) -> Float32:
    """a * b + c of float32, rounded once (fma.rn.f32).

    The product is exact in float64. The sum is rounded to odd there: a float64 has more than two bits beyond a
    float32, so that rounding it again gives what one rounding of the exact sum gives (Boldo & Melquiond 2008).
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    # the error of the sum, exactly (Knuth's two-sum)
    other = total - product
    error = (product - (total - other)) + (addend - other)
    bits = total.view(np.int64) if total.ndim else total[None].view(np.int64)[0]
    is_even = (bits & 1) == 0
    is_inexact = (error != 0) & np.isfinite(total) & np.isfinite(error)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    odd = np.where(is_inexact & is_even, bits + towards, bits)
    return canonical(odd.view(np.float64).astype(np.float32))


def to_float32_towards_zero(x: NDArray[np.float64]) -> Float32:
    """cvt.rz.f32.f64."""
    nearest = x.astype(np.float32)
    bits = nearest.view(np.int32)
    is_beyond = np.abs(nearest.astype(np.float64)) > np.abs(x)
    # the neighbour closer to zero has the next smaller bits, also that of infinity
    return canonical(np.where(is_beyond, bits - 1, bits).view(np.float32))


def from_bfloat16(x: NDArray[np.uint16]) -> Float32:
    """cvt.f32.bf16: the upper half of a float32."""
    return canonical((x.astype(np.uint32) << np.uint32(16)).view(np.float32))


def to_bfloat16(x: Float32) -> NDArray[np.uint16]:
    """cvt.rn.bf16.f32: to the nearest, ties to even; NaN is 7fff."""
    bits = x.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def to_integer(x: NDArray[np.floating], dtype: np.dtype) -> NDArray[np.integer]:
    """cvt.rzi: towards zero, clamped to the type's range (section 9.7.9, cvt).

    NaN becomes 0; of float64, or to 64 bits, it becomes the upper bit alone.
    """
    limits = np.iinfo(dtype)
    whole = np.trunc(x.astype(np.float64))
    # the largest integers of 64 bits are no float64
    too_large, too_small = whole >= float(limits.max) + 1, whole < float(limits.min)
    inside = np.where(too_large | too_small | np.isnan(whole), 0.0, whole).astype(dtype)
    is_wide = dtype.itemsize == 8 or x.dtype == np.float64
    of_nan = np.array(is_wide << (8 * dtype.itemsize - 1), f"u{dtype.itemsize}").view(dtype)
    clamped = np.where(
        too_large, dtype.type(limits.max), np.where(too_small, dtype.type(limits.min), inside)
    )
    return np.where(np.isnan(whole), of_nan, clamped).astype(dtype)


def flush(x: Float32) -> Float32:
    """Replace subnormal numbers by zero of the same sign (.ftz)."""
    is_subnormal = np.abs(x) < np.float32(2.0**-126)
    return np.where(is_subnormal, np.copysign(np.float32(0), x), x)
