"""State that somebody put into the memory of another parameter or its state: refused by name, as parameters are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import normal, step
from checks import Snapshot, all_params, assert_same_optimizers
from torch import nn

import stackelberg_fused as sf


def _of_another(optimizer: Any, p: Any, q: Any) -> None:
    optimizer.state[p]["exp_avg"] = optimizer.state[q]["exp_avg"]


def _of_itself(optimizer: Any, p: Any, q: Any) -> None:
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg_sq"]


def _in_part(optimizer: Any, p: Any, q: Any) -> None:
    memory = torch.zeros(7, device=p.device)
    optimizer.state[p]["exp_avg"], optimizer.state[q]["exp_avg"] = memory[:6], memory[1:]


def _exchanged_memory(optimizer: Any, p: Any, q: Any) -> None:
    optimizer.state[p]["exp_avg"].data = optimizer.state[q]["exp_avg"].data


def _of_a_parameter(optimizer: Any, p: Any, q: Any) -> None:
    optimizer.state[p]["exp_avg"] = q.detach()


def _a_parameter_in_state(optimizer: Any, p: Any, q: Any) -> None:
    p.data = optimizer.state[q]["exp_avg"]


OVERLAPS: dict[str, Callable[[Any, Any, Any], None]] = {
    f.__name__.strip("_"): f
    for f in (
        _of_another,
        _of_itself,
        _in_part,
        _exchanged_memory,
        _of_a_parameter,
        _a_parameter_in_state,
    )
}


def _trained(backend: str, **more: Any) -> Any:
    instance, device = chosen(backend)
    params = [nn.Parameter(normal(6, n).to(device)) for n in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "role": "head", "lr": 0.2}]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, backend=instance, **more)
    step(optimizer)
    return optimizer


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("name", OVERLAPS)
@by_backend
def test_refused_until_it_is_mended(backend: str, name: str, flatten: bool) -> None:
    ours, twin = (_trained(backend, flatten=flatten) for _ in range(2))
    params = all_params(ours)
    good = [(p.data, copy.deepcopy(ours.state[p])) for p in params]
    OVERLAPS[name](ours, *params)
    before = Snapshot(ours)
    for role in (None, None, "head"):
        with pytest.raises(ValueError, match=r"exp_avg of parameter 0 .*overlap in memory"):
            ours.step(role=role)
        before.assert_unchanged()
    for p, (data, entry) in zip(params, good, strict=True):
        p.data, ours.state[p] = data, entry
    for seed in range(1, 3):
        step(ours, twin, seed=seed)
    assert_same_optimizers(ours, twin)


@by_backend
def test_two_parameters_with_one_entry(backend: str) -> None:
    ours, twin = _trained(backend), _trained(backend)
    p, q = all_params(ours)
    kept, ours.state[q] = ours.state[q], ours.state[p]
    before = Snapshot(ours)
    with pytest.raises(ValueError, match=r"parameter 0 of param group 1 .*the very dict .*group 0"):
        ours.step()
    before.assert_unchanged()
    ours.state[q] = kept
    step(ours, twin, seed=1)
    assert_same_optimizers(ours, twin)


@by_backend
def test_neighbours_in_memory_of_the_users(backend: str) -> None:
    ours, twin = _trained(backend), _trained(backend)
    memory = torch.zeros(24, device=all_params(ours)[0].device)
    places = iter(memory.view(4, 6))
    for p in all_params(ours):
        for name in ("exp_avg", "exp_avg_sq"):
            ours.state[p][name] = next(places).copy_(ours.state[p][name])
    for seed in range(1, 3):
        step(ours, twin, seed=seed)
    assert_same_optimizers(ours, twin)
    assert all(place.any() for place in memory.view(4, 6))
