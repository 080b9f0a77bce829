"""Adam's bias corrections in float64; csrc/row.h has the same operations in the same order."""

from __future__ import annotations

import math


def integer_power(base: float, exponent: int) -> float:
    """Return `base ** exponent` by binary exponentiation, with the same float64 multiplications in every language."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        exponent >>= 1
        if exponent:
            base *= base
    return result


def bias_corrections(beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """Return the factors on Adam's rate and on eps at step t (Kingma & Ba 2015, end of section 2).

    Args:
        beta1, beta2: decay rates of the moments, in [0, 1).
        step: t, from 1.

    Returns:
        `sqrt(1 - beta2^t) / (1 - beta1^t)` for the rate and `sqrt(1 - beta2^t)` for eps.
    """
    bias_correction2_sqrt = math.sqrt(1.0 - integer_power(beta2, step))
    return bias_correction2_sqrt / (1.0 - integer_power(beta1, step)), bias_correction2_sqrt
