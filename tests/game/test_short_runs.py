"""Short runs of a search: the schedule of their rates, and the loss by which they count."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scales import BATCHES, Scales, curved, scales_groups, search_scales
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

import stackelberg_fused as sf
from stackelberg_fused.game.short_runs import short_run_loss

STEPS = 6


def _quarter(step: int) -> float:
    return 0.25**step


def _run(**how: Any) -> float:
    settings: dict[str, Any] = {"steps": STEPS, "seed": 3, **how}
    groups = [{"name": "all", "lr": 0.004}]
    return short_run_loss(
        Scales,
        BATCHES[:1],
        curved,
        lambda model: [{**groups[0], "params": list(model.parameters())}],
        sf.StackelbergSGD,
        {},
        **settings,
    )


def _by_hand(rates: list[float]) -> list[float]:
    """Losses before each step, and after the last, of plain gradient descent."""
    torch.manual_seed(3)
    model, losses = Scales(), []
    for rate in [*rates, 0.0]:
        loss = curved(model, BATCHES[0])
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for param, gradient in zip(model.parameters(), gradients, strict=True):
                param -= rate * gradient
    return losses


def test_the_rates_of_a_run_follow_the_schedule() -> None:
    expected = _by_hand([0.004 * 0.25**step for step in range(STEPS)])
    found = _run(schedule=partial(LambdaLR, lr_lambda=_quarter))
    assert found == pytest.approx(expected[STEPS - 1], rel=1e-5)  # the last quarter is one step
    assert found != pytest.approx(_run(), rel=1e-3)


def test_a_run_counts_by_what_evaluate_returns() -> None:
    seen = []

    def evaluate(model: nn.Module) -> Tensor:
        seen.append((model.training, torch.is_grad_enabled()))
        return curved(model, BATCHES[0])

    assert _run(evaluate=evaluate) == pytest.approx(_by_hand([0.004] * STEPS)[-1], rel=1e-5)
    assert seen == [(False, False)]
    assert _run(evaluate=lambda _: 7) == 7.0
    assert _run(evaluate=lambda _: math.nan) == math.inf


def test_a_run_that_diverged_is_not_evaluated() -> None:
    def never(model: nn.Module) -> float:
        raise AssertionError("evaluated")

    loss = short_run_loss(
        Scales,
        BATCHES,
        lambda model, batch: curved(model, batch) * math.inf,
        lambda model: [{"params": list(model.parameters()), "lr": 1.0}],
        sf.StackelbergSGD,
        {},
        STEPS,
        0,
        evaluate=never,
    )
    assert loss == math.inf


@pytest.mark.parametrize("returned", [torch.zeros(2), None, "low"])
def test_an_evaluation_is_one_number(returned: Any) -> None:
    with pytest.raises(ValueError, match="evaluate must return one number"):
        _run(evaluate=lambda _: returned)


def _small_is_left(model: nn.Module) -> Any:
    return model.small.square().sum()


def _halved(optimizer: torch.optim.Optimizer) -> StepLR:
    return StepLR(optimizer, 5, 0.5)


def _tenfold(_: int) -> float:
    return 10.0


def test_a_search_takes_both() -> None:
    """One vector alone counts: plain gradient descent solves it in one step at a rate of 50."""
    found = search_scales(evaluate=_small_is_left, tuning_seeds=1)
    assert max(found.losses["rates by group"]) < 1e-3
    assert 20 < found.rates["small"] < 80
    tenfold = partial(LambdaLR, lr_lambda=_tenfold)
    scheduled = search_scales(evaluate=_small_is_left, schedule=tenfold, tuning_seeds=1)
    assert 2 < scheduled.rates["small"] < 8


@pytest.mark.parametrize("name, value", [("schedule", _halved), ("evaluate", _small_is_left)])
def test_another_schedule_or_evaluation_is_another_search(
    name: str, value: Any, tmp_path: Path
) -> None:
    with_it, without = tmp_path / "with", tmp_path / "without"
    small: dict[str, Any] = {"groups": scales_groups, "budget": 1, "steps": 2, "seeds": 5}
    sf.find_rates(Scales, BATCHES, curved, path=without, **small)
    sf.find_rates(Scales, BATCHES, curved, path=with_it, **small, **{name: value})
    sf.find_rates(Scales, BATCHES, curved, path=with_it, **small, **{name: value})
    with pytest.raises(ValueError, match=f"whose {name} was None and not "):
        sf.find_rates(Scales, BATCHES, curved, path=without, **small, **{name: value})
    with pytest.raises(ValueError, match=f"whose {name} was '.*' and not None"):
        sf.find_rates(Scales, BATCHES, curved, path=with_it, **small)
