"""Parameters and rules of a group replaced between steps: followed, or refused for as long as they do not fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import (
    Options,
    both,
    normal,
    set_gradients,
    step,
)
from checks import Snapshot, assert_agree, assert_same_optimizers
from torch import nn

import stackelberg_fused as sf

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})


def _replaced() -> tuple[Any, nn.Parameter, nn.Parameter]:
    """An optimizer of which a group got another list of parameters, the old parameter and the new."""
    old, new = (nn.Parameter(normal(5, i)) for i in range(2))
    optimizer = sf.StackelbergAdamW([old], lr=0.1, backend="cpu")
    step(optimizer)
    optimizer.param_groups[0]["params"] = [new]
    set_gradients(optimizer.param_groups, 1)
    return optimizer, old, new


def test_another_list_of_parameters() -> None:
    optimizer, old, new = _replaced()
    before = old.detach().clone(), new.detach().clone()
    optimizer.step()
    assert torch.equal(old, before[0])
    assert not torch.equal(new, before[1])


@pytest.mark.parametrize("look", [False, True])
def test_another_list_of_parameters_is_not_forgotten_where_the_step_is_refused(look: bool) -> None:
    optimizer, old, new = _replaced()
    before = old.detach().clone(), new.detach().clone()
    optimizer.param_groups[0]["lr"] = math.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="lr"):
            optimizer.backend if look else optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert torch.equal(old, before[0])
    assert not torch.equal(new, before[1])


def test_parameters_that_cannot_be_stepped_are_refused_at_every_step() -> None:
    optimizer, _, new = _replaced()
    optimizer.param_groups[0]["params"] = [new * 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="non-leaf"):
            optimizer.step()


@BACKENDS
@pytest.mark.parametrize("first, then", [("adamw", "sgd"), ("adam", "sgd"), ("sgd", "adam")])
def test_adam_does_not_become_sgd_while_it_has_state(first: str, then: str, backend: str) -> None:
    both_rules = {"momentum": 0.9, "dampening": 0.0, "nesterov": False}
    p, q = (nn.Parameter(normal(5, 1)) for _ in range(2))
    group = {"params": [p], "rule": first, "betas": (0.9, 0.99), "eps": 1e-8, "amsgrad": False}
    ours = sf.StackelbergAdam([{**group, **both_rules}], lr=0.01, backend=backend)
    step(ours)
    ours.param_groups[0].update(rule=then, decoupled_weight_decay=False)
    before = Snapshot(ours)
    set_gradients(ours.param_groups, 1)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"parameter 0 .*not that of rule"):
            ours.step()
        before.assert_unchanged()
    ours.state.clear()
    q.data.copy_(p.data)
    fresh = sf.StackelbergAdam(
        [{**group, **both_rules, "params": [q], "rule": then}], lr=0.01, backend=backend
    )
    step(ours, fresh, seed=2)
    assert_same_optimizers(ours, fresh)


@BACKENDS
def test_adam_and_adamw_take_turns(backend: str) -> None:
    ours, torchs = both(Options("adam", {"lr": 0.1, "weight_decay": 0.1}), backend)
    for seed in range(6):
        decoupled = seed % 3 == 1
        for optimizer in (ours, torchs):
            optimizer.param_groups[0]["decoupled_weight_decay"] = decoupled
        ours.param_groups[0]["rule"] = "adamw" if decoupled else "adam"
        step(ours, torchs, seed=seed)
    assert_agree(ours, torchs)


def test_a_rule_that_decoupled_weight_decay_contradicts() -> None:
    ours, _ = both(ADAM, "cpu")
    ours.param_groups[0]["decoupled_weight_decay"] = False
    with pytest.raises(ValueError, match=r"param group 0 .*contradict"):
        step(ours)
