"""Means and confidence intervals."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("scipy")

from stackelberg_fused.benchmarks.experiments.statistics import difference, interval


def test_intervals() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5)
    assert interval([1.0])[1] == math.inf
    assert difference([1.0, 3.0], [1.0, 1.0])[0] == 1.0
