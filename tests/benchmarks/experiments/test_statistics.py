"""Means, confidence intervals and quartiles."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("scipy")

from stackelberg_fused.benchmarks.experiments.statistics import difference, interval, quartiles


def test_intervals() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5)
    assert interval([1.0])[1] == math.inf
    assert difference([1.0, 3.0], [1.0, 1.0])[0] == 1.0


def test_quartiles() -> None:
    assert quartiles([4.0, 1.0, 2.0, 3.0]) == pytest.approx((1.75, 2.5, 3.25))
    assert quartiles([1.0, 2.0, math.inf]) == (1.5, 2.0, math.inf)
    assert quartiles([math.inf, math.inf]) == (math.inf,) * 3
