"""Turns step by step, beside a plain count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stackelberg_fused.numerics import turns


@pytest.mark.parametrize("make", [np.array, torch.tensor])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_a_group_moves_on_every_nth_step(every: int, make) -> None:
    waited, moved = make([0.0]), []
    for _ in range(4 * every):
        moved.append(not turns.waits(waited, make([every]))[0])
        waited = turns.waited_after(waited, make([every]), make([True]))
    assert moved == ([False] * (every - 1) + [True]) * 4


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_a_sum_begins_with_a_gradient_and_ends_with_the_move(make) -> None:
    waited, seen = make([0.0]), []
    for adds in (False, True, False, True):  # the last step is the group's turn
        waited = turns.waited_after(waited, make([4]), make([adds]))
        seen.append((float(waited[0]), bool(turns.has_sum(waited)[0])))
    assert seen == [(2.0, False), (5.0, True), (7.0, True), (0.0, False)]


def test_parameters_wait_each_on_their_own() -> None:
    waited = turns.waited_after(
        np.array([0.0, 2.0, 1.0]), np.array([2, 2, 3]), np.array([1, 0, 0]) > 0
    )
    assert waited.tolist() == [3.0, 0.0, 3.0]
