"""Numbers of NumPy, and arrays and tensors of one, as arguments of the game: what they are, wherever they come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import normal
from games import assert_same_players, data, optimizer_of, players

import stackelberg_fused as sf

INTEGERS = {"NumPy's": np.int64, "array": np.array, "tensor": torch.tensor}
NUMBERS = {"NumPy's": np.float32, "array": np.array, "tensor": torch.tensor}
by_integer = pytest.mark.parametrize("kind", INTEGERS)
by_number = pytest.mark.parametrize("kind", NUMBERS)


@by_integer
def test_steps_and_parts(kind: str) -> None:
    ours, twins, given = players(), players(), INTEGERS[kind]
    more: list[dict[str, Any]] = [{"microbatches": given(2)}, {"microbatches": 2}]
    for game, steps, how in ((ours, given(3), more[0]), (twins, 3, more[1])):
        sf.alternating_step(*game, F.cross_entropy, optimizer_of(*game), *data(0), steps, **how)
    assert_same_players(ours, twins)


@by_number
def test_ridges(kind: str) -> None:
    ours, twins, given = players(), players(), NUMBERS[kind](0.25)
    for game, ridge in ((ours, given), (twins, 0.25)):
        optimizer = optimizer_of(*game)
        sf.alternating_step(*game, F.cross_entropy, optimizer, *data(0), "exact", ridge=ridge)
        features, head = normal((12, 7), 5), game[1]
        sf.best_response(head, features, normal((12, 4), 6), "mse", ridge).assign(head)
    assert_same_players(ours, twins)


@by_number
def test_schedules(kind: str) -> None:
    half, ratio = NUMBERS[kind](0.5), NUMBERS[kind](2.0)
    rates = []
    for exponent, final in ((half, ratio), (0.5, 2.0)):
        optimizer = optimizer_of(*players())
        schedules: list[Any] = [
            sf.TwoTimeScaleLR(optimizer, 1.0, exponent, offset=final),
            sf.AnnealedRatioLR(optimizer, NUMBERS[kind](4.0), final),
        ]
        optimizer.step()
        for schedule in schedules:
            schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
        assert all(type(rate) is float for rate in rates[-1])
    assert rates[0] == rates[1]


@pytest.mark.parametrize("wrong", [True, np.bool_(True), torch.tensor(True), 1.5, "1"])
def test_what_is_no_count(wrong: Any) -> None:
    game = players()
    with pytest.raises((TypeError, ValueError), match="microbatches must be an int"):
        sf.alternating_step(
            *game, F.cross_entropy, optimizer_of(*game), *data(0), microbatches=wrong
        )
