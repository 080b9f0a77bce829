"""Exact sums of squares, beside those of fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stackelberg_fused.numerics.exact_sum import (
    DIGIT_BITS,
    DIGITS,
    LOWEST_EXPONENT,
    NANS,
    WORDS,
    carried,
    rounded,
    sum_of_squares,
)

BITS = {torch.float64: 64, torch.float32: 32, torch.float16: 16}


def _nearest(exact: Fraction) -> float:
    try:
        return float(exact)  # Python rounds to nearest, ties to even
    except OverflowError:
        return math.inf


def _fraction(words: torch.Tensor) -> Fraction:
    digits = enumerate(words[:DIGITS].tolist())
    return sum(
        (Fraction(d) * Fraction(2) ** (LOWEST_EXPONENT + DIGIT_BITS * i) for i, d in digits),
        Fraction(0),
    )


def _exact(x: torch.Tensor) -> Fraction:
    return sum((Fraction(v) ** 2 for v in x.double().tolist()), Fraction(0))


@pytest.mark.parametrize("dtype", BITS, ids=str)
@given(st.data())
def test_a_sum_is_exact_and_rounded_once(dtype: torch.dtype, data: st.DataObject) -> None:
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=BITS[dtype])
    x = torch.tensor(data.draw(st.lists(numbers, max_size=20)), dtype=dtype)
    words = sum_of_squares(x)
    exact = _exact(x)
    assert _fraction(words) == exact
    if exact == 0 or exact >= Fraction(2) ** -1022:
        assert float(rounded(words)) == _nearest(exact)
    else:  # float64 has fewer bits there
        assert float(rounded(words)) == pytest.approx(_nearest(exact), abs=5e-324)


@pytest.mark.parametrize("spread", [0, 10, 60, 140])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_numbers_of_any_range(dtype: torch.dtype, spread: int) -> None:
    torch.manual_seed(spread)
    x = torch.randn(3000).double() * torch.exp2(torch.empty(3000).uniform_(-spread, spread / 2))
    x = x.to(dtype)
    assert float(rounded(sum_of_squares(x))) == _nearest(_exact(x))


def test_a_tie_goes_to_the_even_number_and_whatever_is_below_breaks_it() -> None:
    one, tiny, ulp = 1.0, 2.0**-537, 2.0**-52
    tie = [one, 2.0**-27, 2.0**-27]  # 1 + 2 * 2**-54 = 1 + half an ulp
    assert float(rounded(sum_of_squares(torch.tensor(tie, dtype=torch.float64)))) == 1.0
    above = torch.tensor([*tie, tiny], dtype=torch.float64)
    assert float(rounded(sum_of_squares(above))) == 1.0 + ulp
    odd = torch.tensor([one, 2.0**-26, *tie[1:]], dtype=torch.float64)  # 1.5 ulp above 1
    assert float(rounded(sum_of_squares(odd))) == 1.0 + 2 * ulp


def test_carries_run_through_any_number_of_digits() -> None:
    words = torch.zeros((3, WORDS), dtype=torch.int64)
    words[0, 40:90] = 2**DIGIT_BITS - 1
    words[0, 40] += 1
    words[1, 30:80] = 2**62  # as many additions as fit
    words[2, 60] = 2**62 + 1
    for row in words:
        assert float(rounded(row)) == _nearest(_fraction(row))
    assert rounded(words).tolist() == [float(rounded(row)) for row in words]


@pytest.mark.parametrize(
    "values, expected",
    [
        ([], 0.0),
        ([0.0, -0.0], 0.0),
        ([1.0, -math.inf], math.inf),
        ([math.nan, 1.0], math.nan),
        ([math.inf, math.nan], math.nan),
        ([1e300, 1e300], math.inf),
        ([5e-324], 0.0),
        ([2.0**-537], 2.0**-1074),
    ],
)
def test_special_values(values: list[float], expected: float) -> None:
    found = float(rounded(sum_of_squares(torch.tensor(values, dtype=torch.float64))))
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@given(st.lists(st.floats(width=32), min_size=1, max_size=40), st.randoms())
def test_digits_add_up_however_numbers_are_distributed(values: list[float], random: object) -> None:
    x = torch.tensor(values)
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    ranks = [sum_of_squares(part) for part in torch.tensor(shuffled).split(7)]
    together, apart = sum_of_squares(x), torch.stack(ranks).sum(0)
    assert torch.equal(together, carried(apart))
    assert torch.equal(rounded(together), rounded(apart)) or bool(together[NANS])
