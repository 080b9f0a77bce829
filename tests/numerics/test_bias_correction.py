"""Bias corrections: powers in a stated order of multiplications, and the factors made of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackelberg_fused.numerics.bias_correction import bias_corrections, integer_power


@given(st.floats(0.0, 1.0, exclude_max=True), st.integers(0, 2**24))
def test_integer_power(base: float, exponent: int) -> None:
    rounding = (exponent + 1) * 2.0**-53  # what squaring makes of the half ulp of each product
    power = integer_power(base, exponent)
    assert math.isclose(power, base**exponent, rel_tol=rounding, abs_tol=1e-300)


def test_integer_power_multiplies_in_the_stated_order() -> None:
    """Square and multiply from the lowest bit: any other order rounds differently."""
    base = 0.999
    b2 = base * base
    b8 = (b2 * b2) * (b2 * b2)
    assert integer_power(base, 11) == ((1.0 * base) * b2) * b8


@pytest.mark.parametrize("step", [1, 2, 1000, 2**24])
def test_the_factors_are_adams(step: int) -> None:
    factor, root = bias_corrections(0.9, 0.999, step)
    expected = math.sqrt(-math.expm1(step * math.log(0.999)))
    assert root == pytest.approx(expected, rel=1e-12)
    assert factor == pytest.approx(expected / -math.expm1(step * math.log(0.9)), rel=1e-12)
    assert bias_corrections(0.0, 0.0, step) == (1.0, 1.0)
