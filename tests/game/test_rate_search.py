"""What a search for rates says of what it found."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scales import BATCHES, Scales, curved, scales_groups, search_scales
from torch import Tensor, nn

import stackelberg_fused as sf


def _found(p_value: float, by_group: bool) -> sf.RateSearch:
    rates = {"a": 0.1, "b": 0.2}
    recommended = rates if by_group else dict.fromkeys(rates, 0.3)
    losses = {"one rate": [1.0, 2.0], "rates by group": [1.0, 2.0]}
    return sf.RateSearch(
        ["a", "b"], 0.3, rates, losses, p_value, by_group, recommended, [], {}, 2, 0.05
    )


@pytest.mark.parametrize(
    "p_value, by_group, said",
    [
        (0.01, True, "Rates by group (a 0.1, b 0.2): better than one rate, p = 0.01 with 2 seeds;"),
        (math.nan, True, "were best. All seeds gave the same runs"),
        (
            0.2,
            False,
            "One rate for all groups, 0.3: rates by group were not better beyond chance: p = 0.2 ",
        ),
        (0.01, False, "the mean loss was smaller (p = 0.01 with 2 seeds), but the median was not."),
        (math.nan, False, "One rate for all groups, 0.3: rates by group were not better."),
    ],
)
def test_verdicts_agree_with_the_recommendation(p_value: float, by_group: bool, said: str) -> None:
    assert said in _found(p_value, by_group).verdict()


def test_one_group_is_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = search_scales(
        groups=lambda model: [{"params": model.parameters(), "name": "all"}],
        budget=3,
        progress=True,
    )
    assert found.names == ["all"]
    assert found.rates == found.recommended == {"all": found.one_rate}
    assert not found.by_group
    assert math.isnan(found.p_value)
    assert list(found.losses) == list(found.trials) == ["one rate"]
    assert len(found.losses["one rate"]) == 6
    assert found.verdict().startswith("There is one group only")
    assert f"{found.one_rate:.3g}" in found.verdict()
    assert "rates by group" not in found.table()
    assert "1 search x 3 points x at most 2 runs, then 1 x 6 runs" in capsys.readouterr().err
    found.plot(tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5_000


def test_no_better_point_is_said_to_be_none() -> None:
    runs = []

    def counted(model: nn.Module, batch: Tensor) -> Tensor:
        runs.append(model)
        return curved(model, batch)

    found = sf.find_rates(
        Scales,
        BATCHES,
        counted,
        groups=scales_groups,
        optimizer=sf.StackelbergSGD,
        lrs=(1e-4, 1e-3),
        budget=1,
        steps=1,
        tuning_seeds=1,
        seeds=6,
    )
    assert len(runs) == 1 + 6, "the same point ran twice"
    assert found.rates == dict.fromkeys(found.names, found.one_rate)
    assert found.losses["one rate"] == found.losses["rates by group"]
    assert found.p_value == 1.0
    assert "the search by group found no better point" in found.verdict()


def test_rates_at_the_ends_of_the_range_are_named() -> None:
    found = search_scales(lrs=(1e-9, 1e-6), budget=25, steps=4)
    assert "one rate" in found.at_edge
    assert "The one rate is near the end of the range." in found.table()
    assert f"try a wider one: {', '.join(found.at_edge)}." in found.verdict()
    assert "one rate" not in search_scales(budget=25).at_edge
