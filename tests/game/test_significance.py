"""Sign-flip tests: exact p-values, and how often noise passes for a difference."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest

from stackelberg_fused.game.significance import (
    checked_level,
    least_p_value,
    p_values_against_one,
    recommended_ratio,
    sign_flip_p_value,
)


@pytest.mark.parametrize("ratios, rates", [(1, 1), (3, 1), (3, 4)])
def test_noise_is_seldom_taken_for_a_difference(ratios: int, rates: int) -> None:
    """Includes ratios that each take the best of several rates."""
    draw, wrong = random.Random(5), 0
    for _ in range(300):
        at_best = {
            float(ratio): min(
                ([draw.gauss(0, 1) for _ in range(8)] for _ in range(rates)), key=statistics.median
            )
            for ratio in range(1, ratios + 2)
        }
        wrong += recommended_ratio(at_best, p_values_against_one(at_best), 0.05) != 1
    assert wrong <= 0.08 * 300


def test_sign_flips() -> None:
    assert sign_flip_p_value([-1.0] * 5) == 2.0**-5
    assert sign_flip_p_value([1.0] * 5) == 1.0
    assert sign_flip_p_value([-3.0, 1.0]) == 0.5
    assert sign_flip_p_value([-math.inf, -1.0, -1.0]) == 0.125
    assert sign_flip_p_value([-1.0] * 14) == least_p_value(14) == 2.0**-14


def test_an_estimate_is_never_zero() -> None:
    """What was measured is one of the possible signs."""
    for count in (15, 30):
        assert sign_flip_p_value([-1.0] * count) == least_p_value(count) == 1 / 10_001
    assert sign_flip_p_value([1.0] * 30) == 1.0
    differences = [(-1.0) ** i * i for i in range(14)]
    exact, estimate = sign_flip_p_value(differences), sign_flip_p_value([*differences, 0.0])
    assert estimate == pytest.approx(exact, abs=0.02)


def test_a_level_lies_between_0_and_1() -> None:
    assert checked_level("f", np.float32(0.25)) == checked_level("f", 0.25) == 0.25
    for wrong in (0, 1, -0.1, 5, math.nan, math.inf, "0.05", None, True):
        with pytest.raises(ValueError, match=r"f\(\) needs 0 < level < 1, got"):
            checked_level("f", wrong)
