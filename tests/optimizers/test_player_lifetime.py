"""How long a player, its optimizer and what wraps them live: nobody waits for the garbage collector."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from checks import all_params, assert_same_bits
from torch import nn
from torch.optim.lr_scheduler import (
    LambdaLR,
)
from two_players import fill, sgd_of_two, values_of


def _stepped(role: str) -> tuple[Any, weakref.ref[Any]]:
    """A player that was stepped, of an optimizer that nobody else holds, and that optimizer."""
    ours = sgd_of_two()
    fill(ours)
    ours.player(role).step()
    return ours.player(role), weakref.ref(ours)


@pytest.fixture
def _no_collector() -> Iterator[None]:
    # torch 2.13 imports its compiler for the first optimizer, which stays in a traceback of that import
    torch.optim.SGD([nn.Parameter(torch.ones(1))])
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
def test_an_optimizer_whose_players_were_asked_for_is_freed_at_once() -> None:
    ours = sgd_of_two()
    fill(ours)
    for role in ("body", "head"):
        ours.player(role).step()
    ours.player("head").register_step_post_hook(lambda *_: None)
    ours.step()
    gone = [weakref.ref(thing) for thing in (ours, ours._engine, ours.player("head"))]
    del ours
    assert [reference() for reference in gone] == [None] * 3


@pytest.mark.usefixtures("_no_collector")
def test_a_player_goes_on_without_anybody_who_holds_its_optimizer() -> None:
    head, owner = _stepped("head")
    assert owner() is None
    twin = sgd_of_two()
    fill(twin)
    twin.step(role="head")
    for number in (2.0, 3.0):
        for p, q in zip(
            head.param_groups[0]["params"], twin.param_groups[1]["params"], strict=True
        ):
            p.grad, q.grad = torch.full_like(p, number), torch.full_like(q, number)
        twin.param_groups[0]["params"][0].grad = None
        head.step()
        twin.step(role="head")
    assert_same_bits(head.param_groups[0]["params"][0], twin.param_groups[1]["params"][0])
    assert head._owner.launches == twin.launches
    assert head._owner.player("head") is head
    again = copy.deepcopy(head)
    assert_same_bits(again.param_groups[0]["params"][0], head.param_groups[0]["params"][0])
    gone = weakref.ref(head)
    del head
    assert gone() is None


def test_two_players_of_an_optimizer_that_nobody_holds_share_its_state() -> None:
    ours = sgd_of_two()
    players = [ours.player(role) for role in ("body", "head")]
    params = [p for player in players for g in player.param_groups for p in g["params"]]
    fill(ours)
    del ours
    gc.collect()
    saved = [p.detach().clone() for p in params]
    for player in players:
        player.step()
    assert [float(players[0].state[p]["step"]) for p in params] == [1.0, 1.0]
    assert not any(torch.equal(p, q) for p, q in zip(params, saved, strict=True))
    assert players[0].state_dict().keys() == players[1].state_dict().keys()


class _Wrapper:
    """As Lightning's: of the optimizer's class, without its attributes."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Wrapper", (_Wrapper, type(optimizer)), {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_player_of_a_wrapper(is_kept: bool) -> None:
    ours = sgd_of_two()
    fill(ours)
    head = _Wrapper(ours).player("head")
    before = values_of(ours)
    assert ours.player("head") is head
    kept = ours if is_kept else None
    params = all_params(ours)
    del ours
    head.step()
    assert torch.equal(params[0], before[0])
    assert not torch.equal(params[1], before[1])
    assert (kept is not None) == is_kept


def test_a_player_outlives_a_scheduler_of_its_optimizer() -> None:
    ours = sgd_of_two()
    fill(ours)
    scheduler = LambdaLR(ours, lambda _: 1.0)
    head = ours.player("head")
    param = head.param_groups[0]["params"][0]
    before = param.detach().clone()
    del ours, scheduler
    gc.collect()
    head.step()
    assert not torch.equal(param, before)
