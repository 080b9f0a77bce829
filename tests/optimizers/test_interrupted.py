"""Calls between steps that an interrupt (Ctrl-C) ends anywhere: all of each happened, or nothing of it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import chosen
from cases import normal, set_gradients
from checks import all_params, assert_same_optimizers
from games import data, optimizer_of, players
from interrupted import ARRIVALS, Interrupting
from torch import Tensor, nn

import stackelberg_fused as sf

# these tests give new gradients, as torch's `zero_grad()` of a model would have it
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*not in the flat buffer")]

by_arrival = pytest.mark.parametrize("arrival", ARRIVALS)
AVERAGED = {"ema_decay": 0.5, "max_grad_norm": 1.0}


def _optimizer(backend: str = "cpu", steps: int = 2, **more: Any) -> Any:
    instance, device = chosen(backend)
    params = [nn.Parameter(normal(n, n).to(device)) for n in (3, 40, 5)]
    groups = [{"params": params[:2]}, {"params": params[2:], "role": "head"}]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, head_lr_ratio=2.0, backend=instance, **more)
    for number in range(steps):
        _step(optimizer, number)
    return optimizer


def _step(optimizer: Any, number: int = 7) -> None:
    set_gradients(optimizer.param_groups, number)
    optimizer.step()


def _look(optimizer: Any) -> list[Any]:
    """Everything that the calls of these tests change, as copies."""
    found: list[Any] = [[group["lr"] for group in optimizer.param_groups]]
    for param in all_params(optimizer):
        entry = optimizer.state.get(param) or {}
        found.append(param.detach().clone())
        found.extend((name, value.clone()) for name, value in sorted(entry.items()))
    return found


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)


def _interruptions(
    make: Callable[[], Any], call: Callable[[Any], Any], stride: int, arrival: str = "signal"
) -> Iterator[tuple[Any, str]]:
    """An optimizer whose call was interrupted, for every `stride`-th instruction of the call, and where that was."""
    number, came = 1, True
    while came:
        optimizer, interrupting = make(), Interrupting(number, arrival)
        interrupting(lambda made=optimizer: call(made))
        yield optimizer, f"interrupted at {number}"
        number, came = number + stride, interrupting.came
    assert number > 10 * stride


def _assert_whole(
    make: Callable[[], Any], call: Callable[[Any], Any], stride: int, arrival: str
) -> None:
    """Nothing was done or all of it, whether or not the call is made again; the next step is as it should be."""
    undone, done = make(), make()
    call(done)
    outcomes = [_look(undone), _look(done)]
    kinds = set()
    _step(undone)
    _step(done)
    stepped = [_look(undone), _look(done)]
    for optimizer, where in _interruptions(make, call, stride, arrival):
        found = _look(optimizer)
        (kind,) = [i for i, outcome in enumerate(outcomes) if _is_same(found, outcome)][-1:] or [-1]
        assert kind >= 0, f"{where}: half done"
        kinds.add(kind)
        _step(optimizer)
        assert _is_same(_look(optimizer), stepped[kind]), where
        call(optimizer)
    assert len(kinds) == (1 if _is_same(*outcomes) else 2)


@pytest.mark.parametrize("backend, stride", [("cpu", 331), ("reference", 577)])
@pytest.mark.parametrize("grads", ["gather", "flat"])
@by_arrival
def test_a_state_dict_is_loaded_or_not(arrival: str, backend: str, stride: int, grads: str) -> None:
    other = _optimizer(backend, 5, **AVERAGED)
    other.param_groups[0]["lr"] = 0.03
    saved = copy.deepcopy(other.state_dict())
    _assert_whole(
        lambda: _optimizer(backend, grads=grads, **AVERAGED),
        lambda o: o.load_state_dict(saved),
        stride,
        arrival,
    )


@pytest.mark.parametrize("low", [False, True])
@by_arrival
def test_averages_are_put_in_and_taken_out_again(arrival: str, low: bool) -> None:
    def evaluate(optimizer: Any) -> None:
        with optimizer.ema_weights():
            pass

    def make() -> Any:
        params = [nn.Parameter(normal(n, n).to(torch.bfloat16 if low else None)) for n in (3, 5)]
        optimizer = sf.StackelbergAdamW(params, lr=0.1, ema_decay=0.5, backend="cpu")
        _step(optimizer, 0)
        return optimizer

    _assert_whole(make, evaluate, 5, arrival)


def _evaluate(optimizer: Any, error: type[Exception] | None) -> None:
    with contextlib.suppress(KeyError), optimizer.ema_weights():
        if error is not None:
            raise error


@by_arrival
def test_an_evaluation_that_is_interrupted_has_its_weights_back(arrival: str) -> None:
    optimizer = _optimizer(ema_decay=0.5)
    before = _look(optimizer)
    for number in range(1, 2000, 37):
        for error in (None, KeyError):
            Interrupting(number, arrival)(lambda error=error: _evaluate(optimizer, error))
            assert _is_same(_look(optimizer), before), number


@by_arrival
def test_an_added_group_is_all_there_or_not_at_all(arrival: str) -> None:
    def add(optimizer: Any) -> None:
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(4))]})

    for optimizer, where in _interruptions(_optimizer, add, 331, arrival):
        twin = _optimizer()
        if len(optimizer.param_groups) == 3:
            add(twin)
        for number in range(2):
            _step(optimizer, number)
            _step(twin, number)
        assert_same_optimizers(optimizer, twin, where)
        add(optimizer)


@by_arrival
def test_the_counts_of_an_engine_that_was_never_there_are_not_the_users(arrival: str) -> None:
    def edit(optimizer: Any) -> None:
        optimizer.state[all_params(optimizer)[0]]["exp_avg"] = torch.zeros(3)
        optimizer.step()

    for optimizer, where in _interruptions(_optimizer, edit, 97, arrival):
        _step(optimizer)
        given = [unit.table.given_counts for unit in optimizer._shared.engine.units]
        assert not any(given), where


@pytest.mark.parametrize("role", [None, "body"])
def test_flat_gradients_stay_in_their_buffers(role: Any) -> None:
    def clear(optimizer: Any) -> None:
        all_params(optimizer)[0].grad = torch.ones(3)
        optimizer.zero_grad(role=role)

    twin = _optimizer(grads="flat")
    clear(twin)
    _step(twin)
    for optimizer, where in _interruptions(lambda: _optimizer(grads="flat"), clear, 7):
        buffers = {id(b) for found in optimizer.flat_grads.values() for b in found}
        clear(optimizer)
        cleared = optimizer.flat_grads["body"]
        assert {id(b) for b in cleared} <= buffers
        assert not any(b.any() for b in cleared), where
        _step(optimizer)
        assert_same_optimizers(optimizer, twin, where)


class Game:
    """A body, a head and their alternating optimizer, with gradients left over from a step."""

    def __init__(self, **how: Any) -> None:
        self.body, self.head = players()
        self.optimizer = optimizer_of(self.body, self.head, mode="alternating", **how)
        self.step()

    def closure(self) -> Tensor:
        inputs, targets = data(0)
        loss = F.cross_entropy(self.head(self.body(inputs)), targets)
        loss.backward()
        return loss

    def step(self) -> None:
        self.optimizer.step(self.closure)

    def count(self) -> float:
        return float(self.optimizer.state[next(self.body.parameters())]["step"])


@pytest.mark.parametrize("grads", ["gather", "flat"])
def test_what_an_interrupted_step_left_is_not_taken_for_accumulated(grads: str) -> None:
    number, came = 1, True
    while came:
        game, interrupting = Game(grads=grads), Interrupting(number)
        interrupting(game.step)
        game.step()
        _assert_notices(game)
        number, came = number + 61, interrupting.came


@pytest.mark.parametrize("grads", ["gather", "flat"])
def test_nor_what_an_interrupted_step_of_the_body_left(grads: str) -> None:
    number, came = 1, True
    while came:
        game, interrupting = Game(grads=grads), Interrupting(number)
        game.optimizer.zero_grad()
        game.closure()
        before = game.count()
        interrupting(lambda of=game: of.optimizer.step(role="body"))
        if game.count() == before:  # they are accumulated ones, as far as anybody can tell
            game.optimizer.zero_grad()
        game.step()
        _assert_notices(game)
        number, came = number + 17, interrupting.came


@pytest.mark.parametrize("role", ["head", "body"])
def test_after_zeroing_accumulated_gradients_are_noticed_again(role: Any) -> None:
    for number in range(1, 2000, 37):
        game = Game()
        game.optimizer.zero_grad()
        game.closure()
        Interrupting(number)(lambda of=game: of.optimizer.step(role=role))
        game.optimizer.zero_grad()
        _assert_notices(game)


def _assert_notices(game: Game) -> None:
    game.closure()
    with pytest.raises(RuntimeError, match="accumulated since the last step"):
        game.step()


def test_an_exact_head_is_set_whole() -> None:
    features, targets = normal((12, 7), 1), normal((12, 4), 2)
    number, came = 1, True
    while came:
        head, interrupting = players()[1], Interrupting(number)
        response = sf.best_response(head, features, targets, ridge=0.1)
        before = [p.detach().clone() for p in head.parameters()]
        interrupting(lambda r=response, h=head: r.assign(h))
        moved = [not torch.equal(p, q) for p, q in zip(head.parameters(), before, strict=True)]
        assert all(moved) or not any(moved), number
        number, came = number + 1, interrupting.came
