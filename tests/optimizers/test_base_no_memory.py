"""Memory that runs out, at each allocation in turn: an error, nothing modified, and later calls do what they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from failing_allocator import (
    SETTINGS,
    assert_same,
    every_allocation,
    make_params,
    step,
    try_until_it_succeeds,
    values,
)
from torch import nn

import stackelberg_fused as sf


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_an_allocation_that_fails_modifies_nothing(
    settings: str, backend: str, flatten: bool
) -> None:
    assert every_allocation(settings, backend=backend, flatten=flatten)


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_allocation_that_fails_modifies_nothing_where_gradients_are_flat(settings: str) -> None:
    assert every_allocation(settings, backend="cpu", grads="flat")


def test_state_that_a_checkpoint_lacks_is_allocated_before_the_rest_is_copied() -> None:
    def make(seed: int, **more: Any) -> tuple[list[nn.Parameter], Any]:
        params = make_params("sgd")
        optimizer = sf.StackelbergAdamW(params, lr=0.1, backend="cpu", **more)
        step(optimizer, seed)
        return params, optimizer

    _, other = make(1)
    packed = other.state_dict()
    del packed["state"][1]
    params, ours = make(2, grads="flat")
    before = values(params, ours)
    refusals = try_until_it_succeeds(
        lambda: ours.load_state_dict(packed),
        lambda what: assert_same(values(params, ours), before, what),
        "load",
    )
    assert refusals
    assert [float(ours.state[p]["step"]) for p in params] == [1.0, 0.0, 1.0]
    step(ours, 3)


def test_a_group_whose_state_cannot_be_allocated_leaves_no_state() -> None:
    ours = sf.StackelbergAdamW(make_params("sgd"), lr=0.1, backend="cpu", grads="flat")
    step(ours, 0)
    late = nn.Parameter(torch.ones(70))

    def check(what: str) -> None:
        assert late not in ours.state, what
        assert sorted(ours.state_dict()["state"]) == [0, 1, 2], what

    assert try_until_it_succeeds(lambda: ours.add_param_group({"params": [late]}), check, "add")
    step(ours, 1)
