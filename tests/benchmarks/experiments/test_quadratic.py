"""The games of the quadratic experiments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import normal

pytest.importorskip("rich")

from stackelberg_fused.benchmarks.experiments.quadratic import oscillating, quadratic


@pytest.mark.parametrize("game", [quadratic(10.0, (100.0, 5.0), "", (0, 1)), oscillating()])
def test_gradients_of_the_games(game: Any) -> None:
    theta, w = (
        normal((3, len(start)), 4 + i).requires_grad_() for i, start in enumerate(game.start)
    )
    expected = torch.autograd.grad(game.value(theta, w).sum(), (theta, w))
    for found, exact in zip(game.gradient(theta, w), expected, strict=True):
        torch.testing.assert_close(found, exact)


def test_the_condition_of_q() -> None:
    joint, phi = quadratic(10.0, (100.0,), "", (0, 1)).condition
    assert joint == pytest.approx(402, abs=0.5)
    assert phi == 1.0
