"""release="backward" in alternating steps: the head is released first, then the body."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cases import normal
from checks import assert_same_optimizers
from torch import Tensor, nn

import stackelberg_fused as sf

pytestmark = pytest.mark.usefixtures("small_batches")


class _Game(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(nn.Linear(40, 40) for _ in range(4)))
        self.head = nn.Sequential(nn.Linear(40, 60), nn.Linear(60, 50))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def _games(**more: Any) -> list[tuple[_Game, Any]]:
    found = []
    for options in ({"release": "backward"}, {}):
        game = _Game()
        groups = sf.split_body_head(game, head="head")
        found.append((game, sf.StackelbergAdamW(groups, lr=1e-2, **options, **more)))
    return found


def test_alternating_steps_by_a_closure() -> None:
    games = _games(mode="alternating")
    for number in range(3):
        for game, optimizer in games:
            freed: list[tuple[bool, bool]] = []
            optimizer.step(partial(_evaluate, game, number, freed))
            # the first evaluation leaves the body alone, the second one moves it as it goes
            releases = optimizer is games[0][1]
            assert freed == [(releases, False), (False, releases)]
            optimizer.zero_grad()
    assert_same_optimizers(games[0][1], games[1][1])


def _evaluate(game: _Game, number: int, freed: list[tuple[bool, bool]]) -> Tensor:
    loss = game(normal((4, 40), number)).square().sum()
    loss.backward()
    freed.append(_freed(game))
    return loss


def _freed(game: _Game) -> tuple[bool, bool]:
    head, body = (any(p.grad is None for p in part.parameters()) for part in (game.head, game.body))
    return head, body


@pytest.mark.parametrize("mode", ["simultaneous", "alternating"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_alternating_steps_of_a_model_that_can_be_cut(mode: Any, microbatches: int) -> None:
    games = _games(mode=mode)
    for number in range(3):
        for game, optimizer in games:
            sf.alternating_step(
                game.body,
                game.head,
                nn.functional.mse_loss,
                optimizer,
                normal((4, 40), number),
                normal((4, 50), number),
                microbatches=microbatches,
                head_steps=2,
            )
    assert games[0][1].last_step.launches > 1
    assert_same_optimizers(games[0][1], games[1][1])


def test_steps_of_one_player_by_hand_in_alternating_mode() -> None:
    games = _games(mode="alternating")
    for number in range(3):
        for game, optimizer in games:
            for role in ("head", "body"):
                optimizer.zero_grad()
                game(normal((4, 40), number)).square().sum().backward()
                optimizer.step(role=role)
    assert_same_optimizers(games[0][1], games[1][1])


# edits and copies
