"""The picture of a search for rates: what its axes show, and what stands at their edges."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib.figure
import pytest

from stackelberg_fused import RateSearch
from stackelberg_fused.game.rate_plot import loss_limits
from stackelberg_fused.game.rate_search import shortened
from stackelberg_fused.game.rate_study import Measured


def _made_up(groups: int, worst: float) -> RateSearch:
    names = [f"layers.{i}.attention.projection.weight" for i in range(groups)]
    losses = [1.0, 1.1, 1.2, 1.3, worst, math.inf]
    points = [Measured([10.0**-k] * groups, [loss], loss) for k, loss in enumerate(losses, 1)]
    rates = dict.fromkeys(names, 0.1)
    runs = {"one rate": [2.0, 3.0], "rates by group": [1.0, math.inf]}
    trials = {"one rate": points, "rates by group": points}
    return RateSearch(names, 0.1, rates, runs, 1.0, False, rates, [], trials, 2, 0.05)


def test_losses_far_above_the_better_half_are_cut() -> None:
    low, high = loss_limits([1.0, 1.1, 1.2, 1.3, 1e30, math.inf])
    assert 0.5 < low < 1.0
    assert 1.3 < high < 4.0
    low, high = loss_limits([1.0, 1.0])
    assert low < 1.0 < high
    low, high = loss_limits([1e-6, 1.0, 2.0])
    assert 0.0 < low < 1e-6
    assert high > 2.0
    low, high = loss_limits([-3.0, -2.0, -1.0])
    assert low < -3.0 < -1.0 < high
    low, high = loss_limits([0.0])
    assert low < 0.0 < high


def test_what_is_outside_is_marked_at_the_edge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def kept(self: matplotlib.figure.Figure, *args: object, **kwargs: object) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", kept)
    _made_up(8, 1e30).plot(tmp_path / "rates.png")
    axes = figures[0].axes
    assert len(axes) == 6 + 1
    assert axes[5].get_title() == "and 2 more groups in the table"
    for axis in axes[:-1]:
        assert axis.get_ylim()[1] < 10
        by_marker: dict[str, int] = {}
        for line in axis.lines:
            marker = str(line.get_marker())
            by_marker[marker] = by_marker.get(marker, 0) + len(line.get_xdata())
        assert [by_marker[marker] for marker in "o^x"] == [8, 2, 2]


def test_names_are_cut_in_the_middle() -> None:
    assert shortened("layers.0.weight", 20) == "layers.0.weight"
    name = shortened("layers.11.attention.projection.weight", 20)
    assert len(name) == 20
    assert name.startswith("layers.11")
    assert name.endswith(".weight")
    assert len(shortened("x" * 30, 21)) == 21
    assert "layers.0." in _made_up(1, 2.0).table()
