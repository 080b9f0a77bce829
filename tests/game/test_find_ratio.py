"""The search for a ratio: it recommends a ratio that helps, and ratio 1 if none helps."""

# ruff: noqa: NPY002 - other code may draw from the global state

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.game.search_progress import SearchProgress


class Game(nn.Module):
    """The quadratic of docs/algorithm.md, whose Phi is better conditioned than f."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ParameterList([nn.Parameter(torch.ones(1))])
        self.head = nn.ParameterList([nn.Parameter(torch.zeros(1))])


def _quadratic(model: Game, _: Any) -> Tensor:
    theta, w = model.body[0], model.head[0]
    return ((w - 10 * theta).square() / 2 + 50 * theta.square()).sum()


def test_a_ratio_where_there_is_one_to_find(tmp_path: Path) -> None:
    found = sf.find_ratio(
        Game(),
        [0],
        _quadratic,
        head="head",
        ratios=(1, 10, 100),
        body_lrs=(1e-3, 2e-3, 4e-3),
        optimizer=sf.StackelbergSGD,
        steps=40,
    )
    assert found.recommended > 1
    assert all(math.isnan(p) for p in found.p_values.values())  # every seed is the same run
    assert "nothing is known of chance" in found.verdict()
    assert found.losses.keys() == {1.0, 10.0, 100.0}
    assert f"Ratio {found.recommended:g} at a body rate of" in found.verdict()
    assert sum("<- recommended" in line for line in found.table().splitlines()) == 1
    found.plot(tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 10_000


def _regression(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def _noise() -> list[tuple[Tensor, Tensor]]:
    return [(normal((8, 4), i), normal((8, 1), 100 + i)) for i in range(10)]


def test_one_rate_where_nothing_is_to_be_won() -> None:
    """Targets are noise, so no ratio is faster for all seeds."""
    found = sf.find_ratio(
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)),
        _noise(),
        _regression,
        head="1",
        ratios=(1, 1.01),
        body_lrs=(1e-5, 2e-5),
        steps=4,
        seeds=6,
    )
    assert found.recommended == 1
    assert "One rate for all layers" in found.verdict()


def test_a_ratio_on_random_batches_is_told_with_its_p_value() -> None:
    """Only the head has to learn the linear target, and the body rate is too small for it."""
    target = normal((4, 1), 3)
    batches = [(x, x @ target) for x in (normal((8, 4), i) for i in range(10))]

    def model() -> nn.Module:
        made = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
        nn.init.eye_(made[0].weight)
        return made

    found = sf.find_ratio(
        model, iter(batches), _regression, head=["1"], ratios=(10,), body_lrs=(1e-4,), steps=20
    )
    assert found.recommended == 10
    assert found.p_values == {10.0: 2.0**-8}
    assert "p = 0.0039 with 8 seeds and 1 ratios" in found.verdict()


def test_alternating_runs_and_random_states_of_others() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.rand()
    random.seed(3)
    np.random.seed(3)

    def drawing(model: nn.Module, batch: Any) -> Tensor:
        return _quadratic(model, batch) * (1 + 1e-9 * (random.random() + np.random.rand()))

    found = sf.find_ratio(
        Game(),
        [0],
        drawing,
        head="head",
        ratios=(100,),
        body_lrs=(3e-3, 1e-2),
        optimizer=sf.StackelbergSGD,
        mode="alternating",
        steps=20,
        seeds=2,
    )
    assert (random.random(), np.random.rand()) == expected
    assert min(found.losses[100.0][found.best_rate[100.0]]) < 1e-3


def test_the_grid_is_extended_to_where_the_best_rate_is() -> None:
    found = sf.find_ratio(
        Game(),
        [0],
        _quadratic,
        head="head",
        ratios=(),
        body_lrs=(1e-6, 1e-5),
        optimizer=sf.StackelbergSGD,
        steps=20,
    )
    rates = found.losses[1.0]
    assert len(rates) > 2
    assert min(rates) < found.best_rate[1.0] < max(rates)
    assert found.at_edge == []


def test_diverging_runs_and_random_states() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model = Game()
    found = sf.find_ratio(
        model,
        [0],
        _quadratic,
        head=model.head,
        ratios=(1, 1e6),
        body_lrs=(1e-3, 1e-2),
        optimizer=sf.StackelbergSGD,
        steps=80,
    )
    assert torch.equal(torch.rand(3), expected)
    assert model.body[0].item() == 1.0
    assert found.recommended == 1
    assert all(math.isinf(v) for v in found.losses[1e6][1e-2])
    with pytest.raises(ValueError, match="diverged"):
        sf.find_ratio(
            model, [0], _quadratic, head="head", body_lrs=(1e9, 1e10), optimizer=sf.StackelbergSGD
        )


@pytest.mark.parametrize(
    "change, match",
    [
        ({"ratios": (0,)}, "ratios must be finite"),
        ({"body_lrs": ()}, "body_lrs must be finite"),
        ({"batches": []}, "needs batches"),
        ({"steps": 0}, "needs batches, steps"),
    ],
)
def test_what_is_refused(change: dict[str, Any], match: str) -> None:
    arguments = {"model": Game(), "batches": [0], "loss_fn": _quadratic, "head": "head"}
    with pytest.raises(ValueError, match=match):
        sf.find_ratio(**{**arguments, **change})


def test_few_seeds_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="cannot tell any of 1 ratios from chance with seeds=3"):
        sf.find_ratio(
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)),
            _noise(),
            _regression,
            head="1",
            ratios=(3,),
            steps=2,
            seeds=3,
        )


def test_a_tied_head() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    how: dict[str, Any] = {"head": "2", "steps": 4, "seeds": 2, "ratios": (1, 2), "level": 0.6}
    loss = lambda m, x: (m(x) - x).square().mean()  # noqa: E731
    with pytest.raises(ValueError, match="tied"):
        sf.find_ratio(model, [normal((4, 3), 1)], loss, **how)
    found = sf.find_ratio(model, [normal((4, 3), 1)], loss, tied="head", **how)
    assert set(found.losses) == {1.0, 2.0}


def test_the_bar_counts_the_steps_that_a_diverged_run_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bars: list[SearchProgress] = []

    class Watched(SearchProgress):
        def __exit__(self, *error: Any) -> None:
            bars.append(self)
            super().__exit__(*error)

    monkeypatch.setattr("stackelberg_fused.game.find_ratio.SearchProgress", Watched)
    sf.find_ratio(
        lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)),
        [normal((4, 3), 0)],
        lambda model, batch: model(batch).square().mean(),
        head="1",
        ratios=(1, 1e30),
        body_lrs=(1e-3, 1e-2),
        optimizer=sf.StackelbergSGD,
        steps=6,
        seeds=5,
        level=0.5,
    )
    assert bars[0].done == bars[0].steps
