"""`step(closure)` of an alternating optimizer refuses to clear gradients that somebody accumulated."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import Snapshot
from games import all_of, assert_same_players, data, optimizer_of, players
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stackelberg_fused as sf

KINDS = [("adamw", "gather"), ("sgd", "gather"), ("adamw", "flat")]


class Game:
    """A model, its alternating optimizer, and a closure for each batch."""

    def __init__(self, kind: str = "adamw", grads: str = "gather", **options: Any) -> None:
        self.players = players()
        self.model = nn.Sequential(*self.players)
        self.optimizer = optimizer_of(
            *self.players, kind, mode="alternating", grads=grads, **options
        )

    def backward(self, number: int = 0, share: float = 1.0) -> torch.Tensor:
        inputs, targets = data(number)
        loss = share * nn.functional.cross_entropy(self.model(inputs), targets)
        loss.backward()
        return loss

    def step(self, number: int = 0, **how: Any) -> Any:
        return self.optimizer.step(lambda: self.backward(number), **how)


@pytest.mark.parametrize("kind, grads", KINDS)
@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_microbatches_before_the_step_are_refused(kind: str, grads: str, steps_before: int) -> None:
    game = Game(kind, grads)
    for _ in range(steps_before):
        game.step()
    game.optimizer.zero_grad()
    game.backward(1)
    before = Snapshot(game.optimizer)
    called: list[int] = []
    with pytest.raises(RuntimeError, match=r"parameter 0 of param group 0 .*accumulated.*micro"):
        game.optimizer.step(lambda: called.append(1))
    before.assert_unchanged()
    assert not called
    game.optimizer.zero_grad()  # as the message says
    game.step()


@pytest.mark.parametrize("kind, grads", KINDS)
def test_the_batch_in_the_closure_is_the_batch(kind: str, grads: str) -> None:
    whole, parts = Game(kind, grads), Game(kind, grads)

    def microbatches() -> None:
        inputs, targets = data(0)
        for x, y in zip(inputs.chunk(4), targets.chunk(4), strict=True):
            (nn.functional.cross_entropy(parts.model(x), y) / 4).backward()

    for _ in range(3):
        whole.step()
        parts.optimizer.step(microbatches)
    for p, q in zip(all_of(whole.players), all_of(parts.players), strict=True):
        torch.testing.assert_close(p, q)


CLEARED: dict[str, Callable[[Game], Any]] = {
    "not at all": lambda game: None,
    "to None": lambda game: game.optimizer.zero_grad(),
    "to zero": lambda game: game.optimizer.zero_grad(set_to_none=False),
    "by the model": lambda game: game.model.zero_grad(),
    "by the model, to zero": lambda game: game.model.zero_grad(set_to_none=False),
    "player by player": lambda game: [
        game.optimizer.player(r).zero_grad() for r in ("body", "head")
    ],
    "in the step": lambda game: None,
}


@pytest.mark.parametrize("kind, grads", KINDS)
@pytest.mark.parametrize("how", CLEARED)
def test_loops_that_go_on(kind: str, grads: str, how: str) -> None:
    game, twin = Game(kind, grads), Game(kind, grads)
    for number in range(3):
        CLEARED[how](game)
        game.step(number, zero_grad=how == "in the step")
        twin.step(number)
    assert_same_players(game.players, twin.players)


@pytest.mark.parametrize("how", list(CLEARED)[1:6])
def test_gradients_that_were_cleared_after_a_backward(how: str) -> None:
    game, twin = Game(), Game()
    for number in range(3):
        game.backward(7)
        CLEARED[how](game)
        game.step(number)
        twin.step(number)
    assert_same_players(game.players, twin.players)


def test_one_player_s_gradients_that_were_cleared() -> None:
    game = Game()
    game.backward()
    game.optimizer.zero_grad(role="body")
    with pytest.raises(RuntimeError, match=r"parameter 0 of param group 1 \(head\) has one"):
        game.step()


def test_a_gradient_in_the_place_of_one_that_was_freed() -> None:
    game = Game()
    for _ in range(5):  # memory and ids are used again
        game.step()
        game.model.zero_grad()
        game.backward()
        with pytest.raises(RuntimeError, match="accumulated"):
            game.step()
        game.model.zero_grad()


def test_gradients_that_were_left_over_are_not_kept() -> None:
    game = Game()
    game.step()
    grad = weakref.ref(game.players[0][0].weight.grad)
    assert grad() is not None
    game.model.zero_grad()
    gc.collect()
    assert grad() is None


def test_steps_by_hand_in_between() -> None:
    game = Game()
    for _ in range(2):
        game.step()
        for role in ("head", "body"):
            game.optimizer.zero_grad()
            game.backward()
            game.optimizer.step(role=role)
        game.step()
        game.optimizer.step(game.backward, role="head")


@pytest.mark.parametrize("kind, grads", KINDS)
@pytest.mark.parametrize("clears", [False, True])
def test_steps_by_hand_before_the_first_closure(kind: str, grads: str, clears: bool) -> None:
    games = [Game(kind, grads) for _ in range(5)]
    for game in games:
        for role in ("head", "body"):
            game.backward()
            game.optimizer.step(role=role, zero_grad=clears)
    went_on, zeroed, accumulated, of_the_head, of_one = games
    went_on.step()  # clears what was left over
    zeroed.backward()
    zeroed.optimizer.zero_grad()
    zeroed.step()
    assert_same_players(went_on.players, zeroed.players)
    accumulated.backward()
    of_the_head.players[1](torch.ones(1, 7)).sum().backward()
    of_one.optimizer.zero_grad(set_to_none=False)
    of_one.players[1].bias.sum().backward()
    for game, number in ((accumulated, 0), (of_the_head, 1), (of_one, 1)):
        before = Snapshot(game.optimizer)
        with pytest.raises(RuntimeError, match=f"param group {number} .*accumulated"):
            game.step()
        before.assert_unchanged()


def test_after_an_error_of_the_closure() -> None:
    game = Game()
    calls: list[int] = []

    def fails() -> None:
        game.backward()
        calls.append(1)
        raise MemoryError("of the test")

    for _ in range(2):
        with pytest.raises(MemoryError):
            game.optimizer.step(fails)
    game.step()
    assert len(calls) == 2


def test_gradients_from_before_the_optimizer() -> None:
    body, head = players()
    head(body(data(0)[0])).sum().backward()
    model = nn.Sequential(body, head)
    optimizer = optimizer_of(body, head, mode="alternating")
    optimizer.step(lambda: model(data(0)[0]).sum().backward())


def test_a_copy_in_the_middle() -> None:
    game = Game()
    game.step()
    model, optimizer = copy.deepcopy((game.model, game.optimizer))
    optimizer.step(lambda: model(data(0)[0]).sum().backward())


def test_other_modes_accumulate_as_torch_does() -> None:
    game = Game()
    optimizer = optimizer_of(*game.players)
    game.backward()
    game.backward()
    optimizer.step()
    game.backward()
    optimizer.step(game.backward)


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("clear", ["not at all", "to None", "to zero", "by the model"])
def test_no_value_is_read(clear: str) -> None:
    game = Game()
    game.step()
    CLEARED[clear](game)
    with _Operations() as operations:
        game.optimizer._shared.accumulated.refuse(game.optimizer.param_groups)
    assert operations.names == []


@pytest.mark.parametrize("accumulates", [False, True])
def test_flat_gradients_that_move_are_still_left_over(accumulates: bool) -> None:
    game = Game(grads="flat")
    game.step()
    if accumulates:
        game.backward()
    game.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    if accumulates:
        with pytest.raises(RuntimeError, match="accumulated"):
            game.step()
        game.optimizer.zero_grad()
    for _ in range(2):
        game.step()


def test_copies_take_leftover_gradients_for_what_they_are() -> None:
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [p]}, {"params": [q], "role": "head"}]
    ours = sf.StackelbergSGD(groups, lr=0.1, mode="alternating")
    ours.step(lambda: (p * q).sum().backward())
    copy.copy(ours).step(lambda: (p * q).sum().backward())
