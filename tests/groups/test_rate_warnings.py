"""Schedulers that end several rates as one: each is noticed once, by name, with what to write instead."""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import stackelberg_fused as sf
from stackelberg_fused.groups.rate_warnings import RatioWatch

PLATEAU = lr_scheduler.ReduceLROnPlateau
RATES = {"two": [3e-4, 3e-3], "layers": [1e-5, 1e-4, 1e-3]}


def _optimizer(rates: list[float], heads: int = 1, **options: Any) -> Any:
    """An optimizer with one group per rate, the last of them the head's."""
    groups = [
        {
            "params": [nn.Parameter(torch.ones(2))],
            "lr": lr,
            "role": "head" if i >= len(rates) - heads else "body",
        }
        for i, lr in enumerate(rates)
    ]
    return sf.StackelbergAdamW(groups, **options)


def _steps(optimizer: Any, schedule: Any, steps: int, *metric: float) -> list[str]:
    """The warnings of some steps."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.ones_like(p)
            optimizer.step()
            schedule.step(*metric)
    return [str(w.message) for w in caught if "epoch parameter" not in str(w.message)]


class WarmupLR:
    """DeepSpeed's, as far as it matters here: no torch scheduler, and one number is taken for every group."""

    def __init__(self, optimizer: Any, warmup_max_lr: Any, steps: int = 4) -> None:
        self.optimizer, self.steps, self.taken = optimizer, steps, 0
        count = len(optimizer.param_groups)
        self.max_lrs = (
            [warmup_max_lr] * count if isinstance(warmup_max_lr, float) else warmup_max_lr
        )

    def step(self) -> None:
        self.taken += 1
        for group, lr in zip(self.optimizer.param_groups, self.max_lrs, strict=True):
            group["lr"] = lr * min(1.0, self.taken / self.steps)


class CosineLRScheduler:
    """timm's, as far as it matters here: a warm-up from one rate for all groups, and a floor for all of them."""

    def __init__(self, optimizer: Any, lr_min: float, warmup_lr_init: float, warmup_t: int) -> None:
        self.optimizer, self.lr_min, self.taken = optimizer, lr_min, 0
        self.warmup_lr_init, self.warmup_t = warmup_lr_init, warmup_t
        self.base_values = [group["lr"] for group in optimizer.param_groups]
        self._set([warmup_lr_init] * len(self.base_values) if warmup_t else self.base_values)

    def _set(self, rates: list[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr * group.get("lr_scale", 1.0)

    def step(self) -> None:
        self.taken += 1
        low, high = self.warmup_lr_init, min(1.0, self.taken / (self.warmup_t or 1))
        left = 0.5 * (1 + math.cos(math.pi * self.taken / 20))
        if self.taken < self.warmup_t:
            self._set([low + (lr - low) * high for lr in self.base_values])
        else:
            self._set([self.lr_min + (lr - self.lr_min) * left for lr in self.base_values])


TRAPS: dict[str, tuple[Callable[[Any], Any], tuple[float, ...], str]] = {
    "one cycle": (
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.01, total_steps=30),
        (),
        r"OneCycleLR\(max_lr=0\.01\) is one .* OneCycleLR\(opt, max_lr=\[0\.01, 0\.1.*\], \.\.\.\)",
    ),
    "cyclic": (
        lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-3, step_size_up=4),
        (),
        r"CyclicLR\(opt, base_lr=\[0\.0001, 0\.001.*\], max_lr=\[0\.001, 0\.01.*\], \.\.\.\)",
    ),
    "cyclic at its peak": (
        lambda o: lr_scheduler.CyclicLR(
            o, [g["lr"] / 10 for g in o.param_groups], 1e-2, step_size_up=4
        ),
        (),
        r"CyclicLR\(opt, max_lr=\[0\.01, 0\.1",
    ),
    "cosine": (
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=1e-6),
        (),
        r"CosineAnnealingLR\(eta_min=1e-06\).*takes no list\. Pass eta_min=0.*warmup_cosine",
    ),
    "warm restarts": (
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=20, eta_min=1e-6),
        (),
        r"CosineAnnealingWarmRestarts\(eta_min=1e-06\)",
    ),
    "behind a warm-up": (
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, 0.1, total_iters=3),
                lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=1e-6),
            ],
            [3],
        ),
        (),
        r"CosineAnnealingLR\(eta_min=1e-06\)",
    ),
    "plateau": (
        lambda o: PLATEAU(o, patience=0, min_lr=2e-6),
        (1.0,),
        r"ReduceLROnPlateau\(min_lr=2e-06\) .*ReduceLROnPlateau\(opt, min_lr=\[2e-06, 2e-05",
    ),
    "timm": (
        lambda o: CosineLRScheduler(o, 2e-6, 0.0, 0),
        (),
        r"CosineLRScheduler\(lr_min=2e-06\).*Pass lr_min=0",
    ),
    "timm, warmed up": (lambda o: CosineLRScheduler(o, 2e-6, 1e-7, 3), (), r"lr_min=2e-06"),
    "deepspeed": (lambda o: WarmupLR(o, 1e-3), (), r"WarmupLR\(opt, warmup_max_lr=\[0\.001, 0\.01"),
}


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES)
@pytest.mark.parametrize("name", TRAPS)
def test_each_is_noticed_once_before_it_is_over(name: str, rates: list[float]) -> None:
    make, metric, message = TRAPS[name]
    optimizer = _optimizer(rates)
    found = _steps(optimizer, make(optimizer), 10, *metric)
    assert len(found) == 1, found
    assert re.search(message, found[0]), found[0]
    assert "scale_schedule" in found[0]


@pytest.mark.slow
def test_groups_of_one_player_alone() -> None:
    for name, (make, metric, message) in TRAPS.items():
        optimizer = _optimizer(RATES["layers"], heads=0)
        found = _steps(optimizer, make(optimizer), 10, *metric)
        assert len(found) == 1, (name, found)
        assert re.search(message, found[0]), name


def test_groups_that_were_equal_are_not_warned_of() -> None:
    for name, (make, metric, _) in TRAPS.items():
        optimizer = _optimizer([1e-3] * 3)
        assert _steps(optimizer, make(optimizer), 25, *metric) == [], name


LISTS: dict[str, Callable[[Any], Any]] = {
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=[1e-3, 1e-2], total_steps=30),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, [1e-4, 1e-3], [1e-3, 1e-2], step_size_up=4),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=20),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=10),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 0.9**k),
    "lambdas": lambda o: lr_scheduler.LambdaLR(o, [lambda k: 0.8**k, lambda k: 0.9**k]),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=20),
    "deepspeed": lambda o: WarmupLR(o, [1e-3, 1e-2]),
    "timm": lambda o: CosineLRScheduler(o, 0.0, 1e-6, 4),
    "two time scales": lambda o: sf.TwoTimeScaleLR(o, offset=3.0),
    "annealed": lambda o: sf.AnnealedRatioLR(o, 10),
}


@pytest.mark.parametrize("name", LISTS)
def test_what_keeps_or_changes_ratios_on_purpose_is_not_warned_of(name: str) -> None:
    optimizer = _optimizer(RATES["two"])
    assert _steps(optimizer, LISTS[name](optimizer), 25) == []


def test_plateau_with_a_floor_per_group() -> None:
    optimizer = _optimizer(RATES["two"])
    assert _steps(optimizer, PLATEAU(optimizer, patience=0, min_lr=[1e-6, 1e-5]), 9, 1.0) == []


def test_plateaus_eps_is_a_floor_too() -> None:
    optimizer = _optimizer(RATES["two"])
    found = _steps(optimizer, PLATEAU(optimizer, patience=0), 12, 1.0)
    assert len(found) == 1
    assert "ReduceLROnPlateau(eps=1e-08)" in found[0]


def test_a_scheduler_of_one_player() -> None:
    """It is none of the other player's business."""
    optimizer = _optimizer([1e-5, 1e-3, 1e-2], heads=2)
    schedule = lr_scheduler.OneCycleLR(optimizer.player("head"), max_lr=0.1, total_steps=30)
    found = _steps(optimizer, schedule, 4)
    assert len(found) == 1
    assert "max_lr=[0.1, 1]" in found[0]


def test_one_that_counts_no_steps_is_judged_by_the_way_of_the_rates() -> None:
    """Timm's: it is not blamed for what another scheduler does."""
    optimizer = _optimizer(RATES["two"])
    idle = CosineLRScheduler(optimizer, 2e-6, 0.0, 0)
    assert _steps(optimizer, LISTS["lambdas"](optimizer), 12) == []
    assert len(_steps(optimizer, idle, 6)) == 1


def test_a_scheduler_of_another_optimizer_is_not_blamed() -> None:
    other, optimizer = _optimizer(RATES["two"]), _optimizer(RATES["two"])
    others = lr_scheduler.CosineAnnealingLR(other, T_max=10, eta_min=1e-6)
    assert _steps(optimizer, LISTS["lambdas"](optimizer), 5) == []
    assert others.eta_min == 1e-6


def test_a_loop_that_writes_one_number() -> None:
    optimizer = _optimizer(RATES["two"])

    class Loop:
        def step(self) -> None:
            for group in optimizer.param_groups:
                group["lr"] = 1e-3

    found = _steps(optimizer, Loop(), 3)
    assert len(found) == 1
    assert "body and head now share one learning rate (0.001): a scheduler or a loop" in found[0]


def test_rates_in_tensors() -> None:
    optimizer = _optimizer([torch.tensor(3e-4), torch.tensor(3e-3)])
    assert _steps(optimizer, LISTS["lambda"](optimizer), 5) == []
    found = _steps(optimizer, lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9), 3)
    assert len(found) == 1


def test_a_state_with_one_rate_is_told_and_that_of_a_finished_schedule_is_not() -> None:
    single = _optimizer([1e-3, 1e-3])
    with pytest.warns(UserWarning, match=r"a single rate was loaded"):
        _optimizer(RATES["two"]).load_state_dict(single.state_dict())
    ended = _optimizer(RATES["two"])
    schedule = sf.AnnealedRatioLR(ended, 3)
    assert _steps(ended, schedule, 5) == []
    again = _optimizer(RATES["two"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(ended.state_dict())
    assert _steps(again, LISTS["lambda"](again), 2) == []


def test_loaded_rates_are_those_that_may_not_end_as_one() -> None:
    saved = _optimizer([1e-4, 1e-2])
    optimizer = _optimizer([5e-3, 5e-3])
    optimizer.load_state_dict(copy.deepcopy(saved.state_dict()))
    found = _steps(optimizer, lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9), 3)
    assert len(found) == 1
    assert "max_lr=[0.1, 10]" in found[0]


def test_a_group_that_rests_or_is_added() -> None:
    optimizer = _optimizer([0.0, 1e-3, 1e-2])
    assert _steps(optimizer, LISTS["cosine"](optimizer), 5) == []
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 1e-2, "role": "head"})
    assert _steps(optimizer, lr_scheduler.ConstantLR(optimizer), 2) == []


def test_timms_scale_of_a_group_scales_its_floor() -> None:
    optimizer = _optimizer([1e-3, 1e-3])
    optimizer.param_groups[0]["lr_scale"] = 0.1
    assert _steps(optimizer, CosineLRScheduler(optimizer, 1e-5, 0.0, 0), 25) == []


def test_many_groups_are_abbreviated() -> None:
    optimizer = _optimizer([1e-5 * 2**i for i in range(9)])
    found = _steps(optimizer, lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=9), 2)
    assert "max_lr=[0.001, 0.002, 0.004, ..., 0.256]" in found[0]


@pytest.mark.parametrize("huge", [1e200, 1.7e308])
def test_huge_and_unknown_rates_raise_nothing(huge: float) -> None:
    array, nan = np.array, float("nan")
    watch, groups = RatioWatch(), [{"role": "body"}, {"role": "head"}]
    watch.follow(groups)
    body, head = array([True, False]), array([False, True])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rates in ([1e-3, 1e-2], [1e-3, huge], [1.0, huge], [nan, 1.0], [nan, nan], [0.0, 0.0]):
            watch.look(array(rates), body, head, groups)
