"""Adam's bias corrections in float64; csrc/cpu/row.h is the same, operation by operation."""

from __future__ import annotations

import math


def integer_power(base: float, exponent: int) -> float:
    """`base ** exponent` by binary exponentiation: float64 multiplications only, in this order in every language."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        exponent >>= 1
        if exponent:
            base *= base
    return result


def bias_corrections(beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """What Adam's rate and eps are multiplied by at a step (Kingma & Ba 2015, end of section 2).

    Returns:
        `sqrt(1 - beta2^t) / (1 - beta1^t)` and `sqrt(1 - beta2^t)`.
    """
    bias_correction2_sqrt = math.sqrt(1.0 - integer_power(beta2, step))
    return bias_correction2_sqrt / (1.0 - integer_power(beta1, step)), bias_correction2_sqrt
