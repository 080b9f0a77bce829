"""Roles, rates and rules of param groups, and the warnings about them."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
from cases import (
    OURS,
    TORCHS,
    normal,
    step,
)
from checks import assert_same_bits
from tolerances import FLOAT32_SCALAR, HOST_SCALAR
from torch import nn
from torch.optim import lr_scheduler

import stackelberg_fused as sf


def _param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(shape or (3,)))


def _two(**head: Any) -> list[dict[str, Any]]:
    return [{"params": [_param()]}, {"params": [_param()], "role": "head", **head}]


def _rates(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


@pytest.mark.parametrize("rule", OURS)
def test_rates_by_role(rule: str) -> None:
    groups = [
        *_two(),
        {"params": [_param()], "lr": 0.5, "role": "head"},
        {"params": [_param()], "lr": 0.02},
    ]
    optimizer = OURS[rule](groups, lr=0.01)
    assert _rates(optimizer) == pytest.approx([0.01, 0.1, 0.5, 0.02], rel=HOST_SCALAR)
    assert _rates(OURS[rule](_two(), lr=0.01, head_lr_ratio=3.0)) == pytest.approx(
        [0.01, 0.03], rel=HOST_SCALAR
    )
    assert [group["role"] for group in optimizer.param_groups] == ["body", "head", "head", "body"]


def test_a_plain_iterable_is_one_body_group() -> None:
    optimizer = sf.StackelbergAdamW(_param() for _ in range(3))
    assert [(g["role"], g["rule"], len(g["params"])) for g in optimizer.param_groups] == [
        ("body", "adamw", 3)
    ]


@pytest.mark.parametrize("rule", OURS)
def test_positional_arguments_are_torchs(rule: str) -> None:
    ours = list(inspect.signature(OURS[rule].__init__).parameters.values())
    theirs = list(inspect.signature(TORCHS[rule].__init__).parameters.values())
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert [(p.name, p.default) for p in ours if p.kind is positional] == [
        (p.name, p.default) for p in theirs if p.kind is positional
    ]
    keywords = {p.name: p.default for p in ours if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for p in theirs:
        if p.kind is inspect.Parameter.KEYWORD_ONLY:
            assert keywords[p.name] == p.default, p.name
    assert set(keywords) >= {"head_lr_ratio", "backend", "flatten"}


@pytest.mark.parametrize("rule", OURS)
def test_groups_have_every_key_of_torchs(rule: str) -> None:
    ours, theirs = OURS[rule]([_param()]).param_groups[0], TORCHS[rule]([_param()]).param_groups[0]
    assert {k: v for k, v in ours.items() if k in theirs and k != "params"} == {
        k: v for k, v in theirs.items() if k != "params"
    }


@pytest.mark.parametrize(
    "execution", [{"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}]
)
def test_execution_hints_are_accepted(execution: dict[str, bool]) -> None:
    assert sf.StackelbergSGD([_param()], **execution).param_groups[0].items() >= execution.items()


def test_rules_of_one_optimizer() -> None:
    groups: list[dict[str, Any]] = [
        {"params": [_param()]},
        {"params": [_param()], "rule": "sgd", "momentum": 0.9},
        {"params": [_param()], "rule": "adam"},
    ]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, weight_decay=0.3)
    assert [g["rule"] for g in optimizer.param_groups] == ["adamw", "sgd", "adam"]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.3] * 3
    assert optimizer.param_groups[1]["nesterov"] is False
    assert [g.get("decoupled_weight_decay") for g in optimizer.param_groups][::2] == [True, False]
    assert (
        sf.StackelbergAdam([_param()], decoupled_weight_decay=True).param_groups[0]["rule"]
        == "adamw"
    )


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("cls", [sf.StackelbergAdam, sf.StackelbergAdamW])
def test_a_group_may_decouple_its_decay_as_in_torch(cls: type, decoupled: bool) -> None:
    p, q = (nn.Parameter(normal(5, 1)) for _ in range(2))
    group = {"decoupled_weight_decay": decoupled, "weight_decay": 0.1}
    ours = cls([{"params": [p], **group}], lr=0.1, backend="reference")
    theirs = getattr(torch.optim, cls.__name__.removeprefix("Stackelberg"))(
        [{"params": [q], **group}], lr=0.1, foreach=False
    )
    assert ours.param_groups[0]["rule"] == ("adamw" if decoupled else "adam")
    for seed in range(3):
        step(ours, theirs, seed=seed)
    assert_same_bits(p, q)


def test_a_rule_contradicted_by_its_group_is_refused() -> None:
    group = {"params": [_param()], "rule": "adamw", "decoupled_weight_decay": False}
    with pytest.raises(ValueError, match=r"param group 0 .*contradict"):
        sf.StackelbergAdam([group])


def test_names_are_kept() -> None:
    model = nn.Linear(3, 2)
    for params in (model.named_parameters(), [{"params": model.named_parameters()}]):
        optimizer = sf.StackelbergAdamW(params)
        assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
        assert optimizer.param_groups[0]["params"][0] is model.weight


def test_a_single_tensor_in_a_group() -> None:
    p = _param()
    assert sf.StackelbergSGD([{"params": p}]).param_groups[0]["params"] == [p]


def test_each_group_has_its_own_tensor_rate() -> None:
    """A scheduler fills it in place: a shared one would take the last group's value everywhere."""
    lr = torch.tensor(0.1)
    groups = [
        {"params": [_param()]},
        {"params": [_param()]},
        {"params": [_param()], "role": "head"},
    ]
    optimizer = sf.StackelbergAdamW(groups, lr=lr)
    assert optimizer.param_groups[0]["lr"] is lr
    assert _rates(optimizer) == pytest.approx([0.1, 0.1, 1.0], rel=FLOAT32_SCALAR)
    schedule = lr_scheduler.LambdaLR(optimizer, [lambda e: 0.5**e, lambda e: 0.1**e, lambda e: 1.0])
    optimizer.step()
    schedule.step()
    assert _rates(optimizer) == pytest.approx([0.05, 0.01, 1.0], rel=FLOAT32_SCALAR)


def _warnings_of(optimizer: Any, steps: int, between: Any = lambda: None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad = torch.ones_like(p)
            optimizer.step()
            between()
    return [str(w.message) for w in caught]


def test_a_scheduler_that_collapses_the_ratio_warns_once() -> None:
    optimizer = sf.StackelbergAdamW(_two(), lr=0.01)
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    found = _warnings_of(optimizer, 5, schedule.step)
    assert len(found) == 1
    assert "share one learning rate" in found[0]
    optimizer.add_param_group({"params": [_param()], "lr": 0.3, "role": "head"})
    assert _warnings_of(optimizer, 3) == []  # building the tables again does not forget


def test_one_cycle_with_a_rate_per_group_keeps_the_ratio() -> None:
    optimizer = sf.StackelbergAdamW(_two(), lr=0.01)
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=[0.01, 0.1], total_steps=10)
    assert _warnings_of(optimizer, 8, schedule.step) == []
    body, head = _rates(optimizer)
    assert head == pytest.approx(10 * body, rel=HOST_SCALAR)


def test_a_scheduler_that_ends_at_zero_does_not_collapse_the_ratio() -> None:
    optimizer = sf.StackelbergAdamW(_two(), lr=0.01)
    schedule = lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 3)
    assert _warnings_of(optimizer, 5, schedule.step) == []


def test_equal_rates_from_the_start_do_not_warn() -> None:
    assert _warnings_of(sf.StackelbergAdamW(_two(), lr=0.01, head_lr_ratio=1.0), 2) == []


def test_a_body_faster_than_the_head_warns_once() -> None:
    with pytest.warns(
        UserWarning, match=r"body's learning rate \(0.1\) is above the head's \(0.01\)"
    ):
        optimizer = sf.StackelbergAdamW(_two(lr=0.01), lr=0.1)
    assert _warnings_of(optimizer, 3) == []
