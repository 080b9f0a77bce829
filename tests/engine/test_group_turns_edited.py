"""Rounds that were saved, or left behind, with other turns: gone on with where they fit, else begun anew."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from torch import nn

import stackelberg_fused as sf

# of a round: its settings, the steps taken, the settings from then on, and the gradients (1 for the first step, 2 for
# the second, ...) that move the weights next: one, or those of which the mean is taken
ROUNDS: dict[str, tuple[tuple[int, str], int, tuple[int, str], list[int]]] = {
    "shorter than what was waited": ((5, "mean"), 3, (2, "mean"), [4, 5]),
    "as short as what was waited": ((5, "mean"), 3, (3, "mean"), [4, 5, 6]),
    "shorter, but not over": ((5, "mean"), 2, (3, "mean"), [1, 2, 3]),
    "longer": ((2, "mean"), 1, (4, "mean"), [1, 2, 3, 4]),
    "a mean that lacks its beginning": ((3, "latest"), 2, (3, "mean"), [3, 4, 5]),
    "a mean that is not wanted": ((3, "mean"), 2, (3, "latest"), [3]),
    "latest, shorter": ((5, "latest"), 3, (2, "latest"), [5]),
    "no turns": ((5, "mean"), 3, (1, "mean"), [4]),
}


def _optimizer(backend: Any, device: Any, turn: tuple[int, str], state_dtype: str | None) -> Any:
    # with 8-bit state, two tables on `reference` and `triton`
    shapes = [(1,), (1, 1)]
    params = [nn.Parameter(torch.zeros(shape, device=device)) for shape in shapes]
    return sf.StackelbergSGD(
        params,
        lr=1.0,
        update_every=turn[0],
        update_every_grads=turn[1],
        state_dtype=state_dtype,
        backend=backend,
    )


def _step(optimizer: Any, gradient: int) -> list[float]:
    params = optimizer.param_groups[0]["params"]
    for param in params:
        param.grad = torch.full_like(param, float(gradient))
    optimizer.step()
    return [float(param.detach()) for param in params]


@pytest.mark.parametrize("case", ROUNDS)
@pytest.mark.parametrize("how", ["loaded", "loaded and saved", "replaced"])
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
@by_backend
def test_a_round_of_another_setting(
    backend: str, state_dtype: str | None, how: str, case: str
) -> None:
    before, steps, after, moves = ROUNDS[case]
    instance, device = chosen(backend)
    optimizer = _optimizer(instance, device, before, state_dtype)
    for number in range(1, steps + 1):
        assert _step(optimizer, number) == [0.0, 0.0]
    new = {"update_every": after[0], "update_every_grads": after[1]}
    if how == "replaced":
        optimizer.param_groups[0] = {**optimizer.param_groups[0], **new}
    else:
        saved = copy.deepcopy(optimizer.state_dict())
        saved["param_groups"][0].update(new)
        optimizer = _optimizer(instance, device, after, state_dtype)
        optimizer.load_state_dict(saved)
        if how == "loaded and saved":
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = _optimizer(instance, device, after, state_dtype)
            optimizer.load_state_dict(saved)
    number, weights = steps, [0.0, 0.0]
    while weights == [0.0, 0.0]:
        number += 1
        weights = _step(optimizer, number)
    expected = sum(moves) / (len(moves) if after[1] == "mean" else 1)
    assert weights == pytest.approx([-expected, -expected], rel=1e-6)
