"""The search for rates: it finds rates by group where they help, one rate where they do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from cases import normal
from scales import BATCHES, Scales, curved, scales_groups, search_scales
from torch import Tensor, nn

import stackelberg_fused as sf


def test_rates_by_group_where_they_help(tmp_path: Path) -> None:
    found = search_scales()
    assert found.names == ["small", "middle", "large"]
    assert found.by_group
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
    assert not found.by_group
    assert found.verdict().startswith("One rate for all groups")


def _no_groups(_: nn.Module) -> list[dict[str, Any]]:
    return []


def _empty_group(model: nn.Module) -> list[dict[str, Any]]:
    return [*scales_groups(model), {"params": [], "name": "nothing"}]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"level": 0}, "0 < level < 1, got 0"),
        ({"level": 1.0}, "0 < level < 1, got 1.0"),
        ({"level": "5 %"}, "0 < level < 1, got '5 %'"),
        ({"lr": 1e-3}, "leave out lr; lrs is the range"),
        ({"head_lr_ratio": 3.0}, "leave out head_lr_ratio"),
        ({"tuning_seeds": 1001}, "tuning_seeds >= 1 and <= 1000, got 1001"),
        ({"groups": nn.Module.parameters}, "number 0 is a Parameter"),
        ({"groups": lambda _: [{"lr": 1.0}]}, "number 0 is a dict without"),
        ({"groups": lambda m: {"params": m.small}}, "number 0 is a str"),
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

    settings: dict[str, Any] = {"groups": scales_groups, "budget": 1, **change}
    with pytest.raises(ValueError, match=match):
        sf.find_rates(Scales, BATCHES, never, **settings)


def test_without_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ImportError, match="pip install optuna"):
        search_scales(budget=1)


def test_diverging_runs() -> None:
    with pytest.raises(ValueError, match="every run with one rate for all groups diverged"):
        search_scales(lrs=(1e30, 1e31), budget=2)
    found = search_scales(lrs=(1e-3, 1e4), budget=12)
    assert any(math.inf in p.losses for p in found.trials["one rate"])
    assert math.isfinite(max(found.losses["one rate"]))


def test_few_seeds_are_warned_of_and_random_states_stay() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    verbosity = optuna.logging.get_verbosity()
    with pytest.warns(UserWarning, match="cannot tell rates by group from chance with seeds=2"):
        search_scales(budget=2, seeds=2)
    assert torch.equal(torch.rand(2), expected)
    assert optuna.logging.get_verbosity() == verbosity


@pytest.mark.parametrize("search", ["rates", "ratio"])
def test_the_cost_is_said_first(search: str, capsys: pytest.CaptureFixture[str]) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "rates": lambda: search_scales(budget=2, progress=True),
        "ratio": lambda: sf.find_ratio(
            Scales,
            BATCHES,
            curved,
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


def test_the_search_by_group_begins_at_the_best_rate() -> None:
    """So it has a finite point where nearly all of the range diverges."""
    found = search_scales(lrs=(1e-3, 1e3), budget=6, seeds=5, steps=30)
    one, each = found.trials.values()
    best = min(one, key=lambda point: point.loss)
    assert math.isfinite(best.loss)
    assert each[0] == best
    assert all(math.isinf(point.loss) for point in each[1:])
    assert [len(one), len(each)] == [6, 6]
    assert all(map(math.isfinite, found.losses["rates by group"]))


def test_a_rate_that_diverges_everywhere_ends_the_search_at_once() -> None:
    runs = []

    def infinite(model: nn.Module, batch: Tensor) -> Tensor:
        runs.append(model)
        return curved(model, batch) * math.inf

    with pytest.raises(ValueError, match="every run with one rate for all groups diverged"):
        sf.find_rates(Scales, BATCHES, infinite, groups=scales_groups, budget=3)
    assert len(runs) == 3


def test_a_slow_head_is_no_reason_to_warn(recwarn: pytest.WarningsRecorder) -> None:
    sf.find_rates(
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)),
        BATCHES,
        lambda model, batch: model(batch).square().sum(),
        head="1",
        budget=12,
        steps=2,
        tuning_seeds=1,
        seeds=6,
    )
    assert not [str(w.message) for w in recwarn if "learning rate" in str(w.message)]


def test_what_the_user_prints_stays_on_its_stream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich, a terminal
    monkeypatch.setenv("COLUMNS", "40")

    def talks(model: nn.Module, batch: Tensor) -> Tensor:
        print("a line of the user's")
        return curved(model, batch)

    settings: dict[str, Any] = {"budget": 1, "steps": 1, "tuning_seeds": 1, "seeds": 5}
    sf.find_rates(Scales, BATCHES, talks, groups=scales_groups, progress=True, **settings)
    out, err = capsys.readouterr()
    assert "a line of the user's" in out
    assert "a line of the user's" not in err
    line = "1 points x at most 1 runs, then 2 x 5 runs, of 1 steps each: at most 12 steps"
    assert line in err, "the line was broken"


def test_integers_of_numpy_are_taken() -> None:
    found = search_scales(budget=np.int64(2), steps=np.int32(2), seeds=np.int64(5))
    assert found.seeds == 5
    assert type(found.seeds) is int


@pytest.mark.parametrize("search", ["rates", "ratio"])
def test_a_factory_has_to_make_new_modules(search: str) -> None:
    model = Scales()
    if search == "rates":
        with pytest.raises(ValueError, match="returned the same module twice"):
            sf.find_rates(lambda: model, BATCHES, curved, groups=scales_groups, budget=1)
    else:
        with pytest.raises(ValueError, match="returned the same module twice"):
            sf.find_ratio(lambda: model, BATCHES, curved, head="large", steps=1)
