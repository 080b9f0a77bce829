"""The search for rates: it finds rates by group where they help, one rate where they do not, and can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from cases import normal
from torch import Tensor, nn

import stackelberg_fused as sf

CURVATURES = {"small": 0.01, "middle": 1.0, "large": 100.0}


class Scales(nn.Module):
    """Three vectors whose curvatures are four orders of magnitude apart."""

    def __init__(self) -> None:
        super().__init__()
        # each with the same part of the loss
        for name, curvature in CURVATURES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(3) / curvature**0.5))


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p], "name": name} for name, p in model.named_parameters()]


def _curved(model: Any, batch: Tensor) -> Tensor:
    parts = [
        curvature * (getattr(model, name) + 1e-3 * batch).square().sum()
        for name, curvature in CURVATURES.items()
    ]
    return torch.stack(parts).sum()


BATCHES = [normal((3,), i) for i in range(4)]


def _search(**how: Any) -> sf.RateSearch:
    settings = {
        "groups": _groups,
        "optimizer": sf.StackelbergSGD,
        "lrs": (1e-4, 100.0),
        "budget": 25,
        "steps": 15,
        "tuning_seeds": 2,
        "seeds": 6,
        **how,
    }
    return sf.find_rates(Scales, BATCHES, _curved, **settings)


def test_rates_by_group_where_they_help(tmp_path: Path) -> None:
    found = _search()
    assert found.names == ["small", "middle", "large"]
    assert found.recommended == found.rates
    assert found.rates["small"] > 10 * found.rates["middle"] > 100 * found.rates["large"]
    assert found.p_value == 2.0**-6
    assert [len(points) for points in found.trials.values()] == [25, 25]
    each = found.trials["rates by group"]
    assert min(p.loss for p in each) == next(
        p.loss for p in each if p.rates == list(found.rates.values())
    )
    assert any(len(p.losses) < 2 for p in each), "no point was given up"
    assert all(math.isinf(p.loss) for p in each if len(p.losses) < 2)
    assert "Rates by group (small " in found.verdict()
    assert "p = 0.016 with 6 seeds" in found.verdict()
    assert len(found.table().splitlines()) == 1 + 3 + 3
    found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 10_000


def test_one_rate_where_nothing_is_to_be_won() -> None:
    found = sf.find_rates(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)),
        [(normal((8, 4), i), normal((8, 1), 100 + i)) for i in range(10)],
        lambda model, batch: (0 * model(batch[0]) - batch[1]).square().mean(),
        head="1",
        budget=3,
        steps=4,
        seeds=6,
    )
    assert found.names == ["body", "head"]
    assert found.recommended == {"body": found.one_rate, "head": found.one_rate}
    assert found.verdict().startswith("One rate for all groups")


def _as_lists(found: sf.RateSearch) -> Any:
    return found.rates, found.one_rate, found.losses, found.trials


def test_a_search_goes_on_where_it_ended(tmp_path: Path) -> None:
    whole = _search(budget=8)
    path = tmp_path / "a folder" / "search.log"
    runs, stopped = [0], Scales

    def interrupted() -> nn.Module:
        runs[0] += 1
        if runs[0] == 20:
            raise KeyboardInterrupt
        return stopped()

    settings: dict[str, Any] = {
        "groups": _groups,
        "optimizer": sf.StackelbergSGD,
        "lrs": (1e-4, 100.0),
        "budget": 8,
        "steps": 15,
        "tuning_seeds": 2,
        "seeds": 6,
        "path": path,
    }
    with pytest.raises(KeyboardInterrupt):
        sf.find_rates(interrupted, BATCHES, _curved, **settings)
    before = runs[0]
    resumed = sf.find_rates(interrupted, BATCHES, _curved, **settings)
    assert _as_lists(resumed) == _as_lists(whole)
    taken = runs[0] - before
    again = sf.find_rates(interrupted, BATCHES, _curved, **settings)
    assert _as_lists(again) == _as_lists(whole)
    assert runs[0] - before - taken == 1, "a finished search runs nothing but looks at the groups"
    with pytest.raises(
        ValueError, match="the file is of another search, whose steps was 15 and not 16"
    ):
        sf.find_rates(Scales, BATCHES, _curved, **{**settings, "steps": 16})


def _no_groups(_: nn.Module) -> list[dict[str, Any]]:
    return []


def _empty_group(model: nn.Module) -> list[dict[str, Any]]:
    return [*_groups(model), {"params": [], "name": "nothing"}]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"budget": 0}, "needs budget >= 1, got 0"),
        ({"seeds": 0}, "needs seeds >= 1"),
        ({"tuning_seeds": 1.5}, "needs tuning_seeds >= 1"),
        ({"steps": True}, "needs steps >= 1"),
        ({"lrs": (1e-2, 1e-3)}, "lrs must be two finite rates"),
        ({"lrs": (0, 1)}, "lrs must be two finite rates"),
        ({"lrs": 1e-3}, "lrs must be two finite rates"),
        ({"groups": _no_groups}, "needs at least one group"),
        ({"groups": _empty_group}, "group 3 \\(nothing\\) has no parameters"),
    ],
)
def test_what_is_refused_before_any_run(change: dict[str, Any], match: str) -> None:
    def never(model: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("a run began")

    settings: dict[str, Any] = {"groups": _groups, "budget": 1, **change}
    with pytest.raises(ValueError, match=match):
        sf.find_rates(Scales, BATCHES, never, **settings)


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match="pip install optuna"):
        _search(budget=1)


def test_diverging_runs() -> None:
    with pytest.raises(ValueError, match="every run with one rate for all groups diverged"):
        _search(lrs=(1e30, 1e31), budget=2)
    found = _search(lrs=(1e-3, 1e4), budget=12)
    assert any(math.inf in p.losses for p in found.trials["one rate"])
    assert math.isfinite(max(found.losses["one rate"]))


def test_few_seeds_are_warned_of_and_random_states_stay() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    verbosity = optuna.logging.get_verbosity()
    with pytest.warns(UserWarning, match="cannot tell rates by group from chance with seeds=2"):
        _search(budget=2, seeds=2)
    assert torch.equal(torch.rand(2), expected)
    assert optuna.logging.get_verbosity() == verbosity


@pytest.mark.parametrize("search", ["rates", "ratio"])
def test_the_cost_is_said_first(search: str, capsys: pytest.CaptureFixture[str]) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "rates": lambda: _search(budget=2, progress=True),
        "ratio": lambda: sf.find_ratio(
            Scales,
            BATCHES,
            _curved,
            head="large",
            ratios=(3,),
            body_lrs=(1e-3, 1e-2),
            optimizer=sf.StackelbergSGD,
            steps=5,
            seeds=6,
            progress=True,
        ),
    }
    calls[search]()
    out, err = capsys.readouterr()
    assert out == ""
    said = " ".join(err.split())
    expected = {
        "rates": "2 searches x 2 points x at most 2 runs, then 2 x 6 runs, of 15 steps each: at most 300 steps",
        "ratio": "2 ratios x 2 rates x 6 seeds = 24 runs of 5 steps",
    }
    assert expected[search] in said
