"""Axes show what matters, with round ticks inside of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stackelberg_fused.report.scale import MOST, Scale, scale_of, text

NUMBERS = st.one_of(st.floats(-1e12, 1e12), st.floats(1 - 1e-12, 1 + 1e-12))
ALL = st.one_of(NUMBERS, st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e308, -1e308]))


@given(st.lists(ALL, max_size=30), st.booleans(), st.booleans())
def test_every_axis_has_room_and_ticks_on_it(values: list[float], log: bool, cut: bool) -> None:
    scale = scale_of(values, may_be_log=log, cut=cut)
    assert -math.inf < scale.low < scale.high < math.inf
    assert not scale.log or scale.low > 0
    ticks = scale.ticks()
    assert 1 <= len(ticks) <= 8
    assert ticks == sorted(set(ticks))
    assert all(-1e-9 <= scale.share(tick) <= 1 + 1e-9 for tick in ticks)
    if not cut and not scale.log:
        assert all(0 <= scale.share(v) <= 1 for v in values if abs(v) < MOST)


def test_a_run_that_diverged_does_not_flatten_the_others() -> None:
    falling = [1 + math.exp(-i / 20) for i in range(100)]
    scale = scale_of([*falling, *(value * 1.5**i for i, value in enumerate(falling))])
    assert scale.high < 20 * max(falling)
    assert all(scale.share(value) <= 1 for value in falling)


def test_rates_of_several_sizes_are_on_a_logarithmic_axis() -> None:
    scale = scale_of([3e-4, 3e-3, 9e-2], cut=False)
    assert scale.log
    assert {1e-3, 1e-2} <= {round(tick, 12) for tick in scale.ticks()}
    assert scale_of([0.0, 3e-4, 9e-2], cut=False).log is False
    assert scale.share(0.0) is None
    # one that ends near zero leaves room for the others
    assert scale_of([1e-12, 1e-3, 1e-2], cut=False).low > 1e-8


def test_ticks_are_round() -> None:
    assert Scale(0.0, 1.06).ticks() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert Scale(0.0, 800.0).ticks(4) == [0.0, 200.0, 400.0, 600.0, 800.0]
    assert Scale(-1.0, 1.0).ticks() == [-1.0, -0.5, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (1.45643, "1.456"),
        (-0.5, "−0.5"),
        (800, "800"),
        (12345, "12\u202f345"),
        (0.0003, "0.0003"),
        (1e-5, "10⁻⁵"),
        (2.5e-7, "2.5·10⁻⁷"),
        (-3e20, "−3·10²⁰"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert text(value) == expected
