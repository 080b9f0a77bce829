"""The axes of the plots of scores."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("matplotlib")

from stackelberg_fused.benchmarks.experiments.training_plots import ceiling


def test_an_axis_ends_where_bad_scores_would_squeeze_the_others() -> None:
    assert ceiling([2.0, 2.1, 2.2, 2.3, 15.0, math.inf]) == pytest.approx(2.2 * 1.1**2)
    assert ceiling([0.002, 0.05, 0.1, 20.0]) == 20.0  # a logarithmic axis shows all of these
    assert ceiling([math.inf]) == 1.0
