"""Rates that meet for a moment, schedulers of players, and schedulers that nobody steps: who is warned of, and when."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

import stackelberg_fused as sf
from stackelberg_fused.groups import rate_warnings

COSINE = lr_scheduler.CosineAnnealingLR


def _optimizer(*rates: float, **options: Any) -> Any:
    """The last group is the head's."""
    groups = [
        {
            "params": [nn.Parameter(torch.ones(2))],
            "lr": lr,
            "role": "head" if i == len(rates) - 1 else "body",
        }
        for i, lr in enumerate(rates)
    ]
    return sf.StackelbergAdamW(groups, **options)


def _steps(optimizer: Any, steps: int, *schedules: Any, each: int = 1) -> list[str]:
    """The warnings of some steps; the rates change after every `each` of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in range(steps):
            _step(optimizer)
            if number % each == each - 1:
                for schedule in schedules:
                    schedule.step()
    return [str(w.message) for w in caught]


def _step(optimizer: Any, role: Any = None) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step(role=role)


def _lambdas(optimizer: Any, *rates: Callable[[int], float]) -> Any:
    """Rates as functions of the step."""
    own = [group["lr"] for group in optimizer.param_groups]
    factors = [
        lambda k, rate=rate, lr=lr: rate(k) / lr for rate, lr in zip(rates, own, strict=True)
    ]
    return lr_scheduler.LambdaLR(optimizer, factors)


class Loop:
    """A loop of the user's own that writes rates, as functions of the step."""

    def __init__(self, optimizer: Any, *rates: Callable[[int], float]) -> None:
        self.optimizer, self.rates, self.taken = optimizer, rates, 0

    def step(self) -> None:
        self.taken += 1
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate(self.taken)


def _touching(k: int) -> float:
    """As high as the head's in one step, and below it in all others."""
    return 1e-3 if k == 3 else 1e-4


MEETINGS: dict[str, tuple[tuple[float, ...], tuple[Callable[[int], float], ...]]] = {
    "touching": ((1e-4, 1e-3), (_touching, lambda k: 1e-3)),
    "warm-up from one rate": ((1e-4, 1e-3), (lambda k: 1e-5 + 1e-6 * k, lambda k: 1e-5 + 1e-5 * k)),
    "warm-up from zero": ((1e-4, 1e-3), (lambda k: 1e-5 * k, lambda k: 1e-4 * k)),
    "to zero, apart": (
        (1e-4, 1e-3),
        (lambda k: 1e-4 * max(0, 8 - k), lambda k: 1e-3 * max(0, 9 - k)),
    ),
    "within the body": (
        (1e-5, 1e-4, 1e-2),
        (lambda k: 1e-5 * k, lambda k: 5e-5, lambda k: 1e-2),
    ),
    "constant": ((1e-4, 1e-3), (lambda k: 1e-4, lambda k: 1e-3)),
    "equal from the start": ((1e-3, 1e-3), (lambda k: 1e-3 * 0.9**k, lambda k: 1e-3 * 0.9**k)),
}


@pytest.mark.parametrize("make", [_lambdas, Loop])
def test_rates_that_only_meet(make: Any) -> None:
    for name, (rates, functions) in MEETINGS.items():
        optimizer = _optimizer(*rates)
        assert _steps(optimizer, 12, make(optimizer, *functions)) == [], name


def test_rates_that_meet_for_an_epoch_by_functions_of_their_own() -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    schedule = _lambdas(optimizer, _touching, lambda k: 1e-3)
    assert _steps(optimizer, 60, schedule, each=10) == []


@pytest.mark.slow
def test_the_many_steps_of_the_head_are_one_of_the_game() -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    schedule = Loop(optimizer, _touching, lambda k: 1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            for role in ("head", "head", "head", "body"):
                _step(optimizer, role)
            schedule.step()


@pytest.mark.slow
def test_the_alternating_mode_is_one_step_too() -> None:
    optimizer = _optimizer(1e-4, 1e-3, mode="alternating")
    schedule = Loop(optimizer, _touching, lambda k: 1e-3)
    params = [p for group in optimizer.param_groups for p in group["params"]]

    def closure() -> Any:
        loss = sum(p.square().sum() for p in params)
        loss.backward()
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            optimizer.step(closure)
            schedule.step()


JOINED: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "at one rate": (lambda k: 1e-3 if k > 2 else 1e-4, lambda k: 1e-3),
    "while they fall": (
        lambda k: 1e-3 * 0.9**k if k > 2 else 1e-4,
        lambda k: 1e-3 * 0.9**k,
    ),
}


@pytest.mark.parametrize("name", JOINED)
def test_a_loop_that_joins_them_is_told_in_its_second_step(name: str) -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    schedule = Loop(optimizer, *JOINED[name])
    assert _steps(optimizer, 4, schedule) == []
    (found,) = _steps(optimizer, 4, schedule)
    assert "body and head now share one learning rate (0.00" in found
    assert "a scheduler or a loop wrote one number" in found


@pytest.mark.slow
def test_functions_that_join_are_told_once_the_rates_have_moved_together() -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    (found,) = _steps(optimizer, 9, _lambdas(optimizer, *JOINED["while they fall"]))
    assert "now share one learning rate" in found


@pytest.mark.parametrize("order", [("body", "head"), ("head", "body")])
def test_players_with_schedulers_of_their_own_and_one_floor(order: Any) -> None:
    optimizer = _optimizer(3e-4, 3e-3)
    schedules = [COSINE(optimizer.player(role), T_max=40, eta_min=1e-6) for role in order]
    (found,) = _steps(optimizer, 4, *schedules)
    assert "different learning rates end as one: CosineAnnealingLR(eta_min=1e-06)" in found


def test_players_that_step_in_turn_with_their_schedulers() -> None:
    optimizer = _optimizer(3e-4, 3e-3)
    schedules = {r: COSINE(optimizer.player(r), T_max=40, eta_min=1e-6) for r in ("head", "body")}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            for role, schedule in schedules.items():
                _step(optimizer, role)
                schedule.step()
    assert ["CosineAnnealingLR(eta_min=1e-06)" in str(w.message) for w in caught] == [True]


@pytest.mark.slow
def test_a_floor_is_one_whoever_has_it() -> None:
    optimizer = _optimizer(3e-4, 3e-3)
    body = COSINE(optimizer.player("body"), T_max=40, eta_min=1e-6)
    head = lr_scheduler.CosineAnnealingWarmRestarts(optimizer.player("head"), 40, eta_min=1e-6)
    assert len(_steps(optimizer, 4, body, head)) == 1


@pytest.mark.slow
def test_players_with_floors_of_their_own() -> None:
    optimizer = _optimizer(3e-4, 3e-3)
    body = COSINE(optimizer.player("body"), T_max=20, eta_min=1e-6)
    head = COSINE(optimizer.player("head"), T_max=20, eta_min=1e-5)
    assert _steps(optimizer, 20, body, head) == []


IDLE: dict[str, Callable[[Any], Any]] = {
    "cosine": lambda o: COSINE(o, T_max=10, eta_min=1e-6),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, eta_min=1e-6),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, min_lr=1e-6),
    "swa": lambda o: swa_utils.SWALR(o, swa_lr=1e-5),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 1.0), COSINE(o, 10, eta_min=1e-6)], [2]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(o, 0.9), COSINE(o, 10, eta_min=1e-6)], optimizer=o
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", IDLE)
def test_a_scheduler_that_nobody_steps_is_not_blamed(name: str) -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    idle = IDLE[name](optimizer)
    schedule = _lambdas(optimizer, lambda k: 1e-4 * 0.8**k, lambda k: 1e-3 * 0.9**k)
    assert _steps(optimizer, 6, schedule) == []
    assert idle.optimizer is optimizer


@pytest.mark.slow
def test_one_cycle_that_was_only_built_is_blamed_while_its_rates_are_there() -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    schedule = _lambdas(optimizer, lambda k: 1e-4 * 0.8**k, lambda k: 1e-3 * 0.9**k)
    idle = lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=9)
    (found,) = _steps(optimizer, 1)
    assert "OneCycleLR(max_lr=0.01)" in found
    other = _optimizer(1e-4, 1e-3)
    schedule = _lambdas(other, lambda k: 1e-4 * 0.8**k, lambda k: 1e-3 * 0.9**k)
    _step(other)
    idle = lr_scheduler.OneCycleLR(other, max_lr=1e-2, total_steps=9)
    schedule.step()  # it has the first rates of its own
    assert _steps(other, 4, schedule) == []
    assert idle.optimizer is other


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3])
def test_a_part_that_wrote_its_first_rates_before_its_turn(steps: int) -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
        lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=30),
    ]
    schedule = lr_scheduler.SequentialLR(optimizer, parts, [3])
    (found,) = _steps(optimizer, steps, schedule)
    assert "OneCycleLR(max_lr=0.01)" in found


STEPPED_LATER: dict[str, tuple[Callable[[Any], Any], str]] = {
    "swa": (lambda o: swa_utils.SWALR(o, swa_lr=1e-5, anneal_epochs=3), r"SWALR\(swa_lr=1e-05\)"),
    "sequential": (
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                _lambdas(o, lambda k: 1e-4 * 0.8**k, lambda k: 1e-3 * 0.9**k),
                COSINE(o, 30, eta_min=1e-6),
            ],
            [2],
        ),
        r"CosineAnnealingLR\(eta_min=1e-06\)",
    ),
    "chained": (
        lambda o: lr_scheduler.ChainedScheduler(
            [COSINE(o, 30, eta_min=1e-6), lr_scheduler.ExponentialLR(o, 0.99)]
        ),
        r"CosineAnnealingLR\(eta_min=1e-06\)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPPED_LATER)
def test_one_that_is_stepped_after_another_is_noticed(name: str) -> None:
    make, message = STEPPED_LATER[name]
    optimizer = _optimizer(1e-4, 1e-3)
    late = make(optimizer)
    first = _lambdas(optimizer, lambda k: 1e-4 * 0.8**k, lambda k: 1e-3 * 0.9**k)
    assert _steps(optimizer, 2, *([first] if name == "swa" else [])) == []
    (found,) = _steps(optimizer, 5, late)
    assert re.search(message, found)


@pytest.mark.slow
def test_plateaus_eps_explains_only_rates_that_are_as_small() -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=100)
    plateau.step(1.0)
    loop = Loop(optimizer, lambda k: 1e-3, lambda k: 1e-3)
    (found,) = _steps(optimizer, 4, loop)
    assert "a scheduler or a loop" in found


class _Namesake:
    """A scheduler of another library, which has nothing but its name in common with those that are known."""

    def __init__(self, optimizer: Any, **settings: Any) -> None:
        self.optimizer, self.taken = optimizer, 0
        vars(self).update(settings)

    def step(self) -> None:
        self.taken += 1
        self.optimizer.param_groups[0]["lr"] = 1e-4 + 3e-4 * self.taken


NAMESAKES: dict[str, dict[str, Any]] = {
    "CosineAnnealingLR": {"eta_min": 1e-4},  # mmengine's counts its steps otherwise
    "CosineLRScheduler": {},
    "ReduceLROnPlateau": {"min_lrs": "1e-4"},
    "OneCycle": {"max_lrs": ["high", "low"]},
}


@pytest.mark.parametrize("name", NAMESAKES)
def test_classes_that_only_have_a_name_in_common(name: str) -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    schedule = type(name, (_Namesake,), {})(optimizer, **NAMESAKES[name])
    _steps(optimizer, 6, schedule)
    assert optimizer.param_groups[0]["lr"] > 1e-3


def test_a_state_in_the_middle_of_a_schedule_goes_on() -> None:
    """A resumed run is told what the first one was: a floor, at its first step."""
    first, again = _optimizer(3e-4, 3e-3), _optimizer(3e-4, 3e-3)
    schedule = COSINE(first, 20, eta_min=1e-6)
    assert len(_steps(first, 5, schedule)) == 1
    resumed = COSINE(again, 20, eta_min=1e-6)
    again.load_state_dict(first.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert len(_steps(again, 20, resumed)) == 1


@pytest.mark.slow
def test_groups_that_are_added_under_a_scheduler() -> None:
    optimizer = _optimizer(1e-4, 1e-3)
    schedule = lr_scheduler.ExponentialLR(optimizer, 0.9)
    assert _steps(optimizer, 2, schedule) == []
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1e-2, "role": "head"})
    assert _steps(optimizer, 4) == []


@pytest.mark.slow
def test_searches_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks at all objects: rates that meet again and again cause no more than a few."""
    searches: list[int] = []
    search = rate_warnings.schedulers_of
    monkeypatch.setattr(
        rate_warnings, "schedulers_of", lambda *given: searches.append(1) or search(*given)
    )
    optimizer = _optimizer(1e-4, 1e-3)
    schedule = Loop(optimizer, lambda k: 1e-4 if k % 3 else 1e-3, lambda k: 1e-3)
    assert _steps(optimizer, 100, schedule) == []
    assert len(searches) <= 8
