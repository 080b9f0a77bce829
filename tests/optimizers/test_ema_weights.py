"""Averages of the weights in the place of the weights: in and out to the bit, and what is refused meanwhile."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from averages import (
    ADAM,
    assert_all_same,
    averages,
    averaging_optimizer,
    train,
    values,
)
from backends import by_backend
from cases import normal, step
from checks import (
    Snapshot,
    all_params,
    assert_same_bits,
    assert_same_optimizers,
)
from failing_allocator import FailingAllocator, NoMemory
from interrupted import ARRIVALS, Interrupt, raising_handler
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.optimizers.ema_weights import AverageSwap


@by_backend
def test_swapped_in_and_out_to_the_bit(backend: str) -> None:
    ours, never = (averaging_optimizer(ADAM, backend, ema_decay=0.9) for _ in range(2))
    train(ours, never)
    places = [p.data_ptr() for p in all_params(ours)]
    weights, kept = values(ours), [ema.clone() for ema in averages(ours)]
    with ours.ema_weights():
        assert_all_same(all_params(ours), kept)
        assert_all_same(averages(ours), weights)
        assert [p.data_ptr() for p in all_params(ours)] == places
    assert_all_same(all_params(ours), weights)
    with pytest.raises(KeyError), ours.ema_weights():
        raise KeyError
    train(ours, never, steps=range(3, 5))
    assert_same_optimizers(ours, never)


def test_evaluation_by_a_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    ours = sf.StackelbergAdamW(model.parameters(), lr=0.1, backend="cpu", ema_decay=0.5)
    batch = normal((6, 3), 1)
    with ours.ema_weights():  # no step yet: nothing to put in
        pass
    for _ in range(3):
        ours.zero_grad()
        model(batch).square().sum().backward()
        ours.step()
    averaged = copy.deepcopy(model)
    for p, q in zip(averaged.parameters(), model.parameters(), strict=True):
        p.data.copy_(ours.state[q]["ema"])
    with ours.ema_weights(), torch.inference_mode():
        assert_same_bits(model.eval()(batch), averaged.eval()(batch))
    model(batch).sum().backward()


REFUSED: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: o.step(),
    "state_dict": lambda o: o.state_dict(),
    "load_state_dict": lambda o: o.load_state_dict(
        {"state": {}, "param_groups": [{"params": [0]}]}
    ),
    "add_param_group": lambda o: o.add_param_group({"params": [nn.Parameter(torch.ones(2))]}),
    "pickling": pickle.dumps,
    "copying": copy.deepcopy,
    "ema_weights": lambda o: o.ema_weights().__enter__(),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_refused_while_the_averages_are_in(refused: Callable[[Any], Any]) -> None:
    ours = sf.StackelbergAdamW([nn.Parameter(normal(5, 1))], backend="cpu", ema_decay=0.9)
    step(ours)
    outside, again = Snapshot(ours), ours.ema_weights()
    with ours.ema_weights():
        inside = Snapshot(ours)
        with pytest.raises(RuntimeError, match="leave ema_weights"):
            refused(ours)
        with pytest.raises(RuntimeError, match="leave ema_weights"), again:
            pass
        inside.assert_unchanged()
    outside.assert_unchanged(versions=False)


def test_a_scaler_refused_while_the_averages_are_in_leaves_nothing() -> None:
    """Or the next step would divide by its scale twice."""
    p = nn.Parameter(torch.ones(3))
    ours = sf.StackelbergSGD([p], lr=1.0, ema_decay=0.5, backend="cpu")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(p.sum()).backward()
    with ours.ema_weights(), pytest.raises(RuntimeError, match="leave ema_weights"):
        scaler.step(ours)
    scaler.step(ours)
    assert p.tolist() == [0.0] * 3


def test_averages_that_do_not_fit_are_not_put_in_halfway() -> None:
    params = [nn.Parameter(normal(3, i)) for i in range(2)]
    ours = sf.StackelbergAdamW(params, backend="cpu", ema_decay=0.9)
    step(ours)
    params[1].data = torch.ones(4)
    before = Snapshot(ours)
    with pytest.raises(RuntimeError), ours.ema_weights():
        pass
    before.assert_unchanged()


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("after", [0, 1, 4, 8])
def test_an_interrupt_leaves_weights_and_averages_where_they_were(
    after: int, arrival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = averaging_optimizer(ADAM, "cpu", ema_decay=0.9)
    train(ours)
    weights, kept = values(ours), [ema.clone() for ema in averages(ours)]
    exchange = AverageSwap._exchange

    def interrupted(swap: AverageSwap, is_in: bool) -> Any:
        calls = exchange(swap, is_in)
        return [*calls[:after], *([ARRIVALS[arrival]] if is_in else []), *calls[after:]]

    monkeypatch.setattr(AverageSwap, "_exchange", interrupted)
    with raising_handler(), pytest.raises(Interrupt), ours.ema_weights():
        pass
    assert_all_same(values(ours), weights)
    assert_all_same(averages(ours), kept)
    train(ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_memory_averages_are_not_put_in_and_weights_come_back(dtype: torch.dtype) -> None:
    params = [nn.Parameter(normal(n, n).to(dtype)) for n in (3, 50, 7)]
    ours = sf.StackelbergAdamW(params, lr=0.1, backend="cpu", ema_decay=0.5)
    for number in range(2):
        step(ours, seed=number)
    before = Snapshot(ours)
    for refused in range(1 if dtype is torch.float32 else len(params)):
        with FailingAllocator(refused), pytest.raises(NoMemory), ours.ema_weights():
            pass
        before.assert_unchanged(versions=False)
    context = ours.ema_weights()
    context.__enter__()
    with FailingAllocator(0):
        context.__exit__(None, None, None)
    before.assert_unchanged(versions=False)


def test_averages_that_cannot_be_taken_out_again_are_not_forgotten() -> None:
    ours = averaging_optimizer(ADAM, "cpu", ema_decay=0.9)
    train(ours)
    changed = all_params(ours)[-1]
    with pytest.raises(RuntimeError, match="its parameter now"), ours.ema_weights():
        changed.data = torch.zeros(3, 3, 3)
    for refused in (ours.step, ours.state_dict):
        with pytest.raises(RuntimeError, match="hold their averages"):
            refused()


def test_no_group_averages() -> None:
    ours = sf.StackelbergAdamW([nn.Parameter(torch.ones(2))])
    with pytest.raises(RuntimeError, match="no param group has an ema_decay"):
        ours.ema_weights()
