"""Averages of the weights that go on: after a checkpoint, a copy, a pause, a skipped step, in a CUDA graph."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from averages import (
    ADAM,
    OPTIONS,
    assert_all_same,
    assert_averaged,
    averages,
    averaging_optimizer,
    train,
    values,
    without,
)
from backends import by_backend
from cases import (
    MIXED,
    Options,
    both,
    kernel_options,
    step,
)
from checks import all_params, assert_same_bits, assert_same_optimizers
from host_cuda.backend import HostCudaBackend


@pytest.mark.parametrize("how", ["load", "load_meanwhile", "deepcopy", "pickle"])
@by_backend
def test_continuing_is_as_not_interrupted(backend: str, how: str) -> None:
    ours = train(averaging_optimizer(MIXED, backend, ema_decay=0.9))
    if how.startswith("load"):
        again = averaging_optimizer(MIXED, backend, ema_decay=0.9)
        if how == "load_meanwhile":
            train(again, steps=range(5, 7))
        again.load_state_dict(ours.state_dict())
        for p, q in zip(all_params(again), all_params(ours), strict=True):
            p.data.copy_(q.data)
    else:
        again = copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))
    train(ours, again, steps=range(3, 6))
    assert_same_optimizers(again, ours)
    assert_all_same(averages(again), averages(ours))


@pytest.mark.parametrize("source", ["torch", "ours without averages"])
def test_a_dict_without_averages_begins_them_with_the_weights(source: str) -> None:
    """And what a group says of its own average stays, because that dict says nothing of it."""
    ours, torchs = both(ADAM, num_groups=3)
    again, _ = both(ADAM, num_groups=3)
    again.param_groups[0]["ema_decay"] = 0.5
    step(torchs, ours, again)
    saved = (torchs if source == "torch" else ours).state_dict()
    for group in saved["param_groups"]:
        group.pop("ema_decay", None)
    again.load_state_dict(saved)
    assert [g["ema_decay"] for g in again.param_groups] == [0.5, None, None]
    old = values(again)
    step(ours, again, seed=1)
    assert_same_optimizers(without(again, "ema"), ours)
    p = again.param_groups[0]["params"][0]
    assert_same_bits(again.state[p]["ema"], torch.lerp(old[0], p.detach(), 0.5))


@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_torch_loads_ours_with_averages(options: Options) -> None:
    ours, torchs = both(options)
    for group in ours.param_groups:
        group["ema_decay"] = 0.9
    step(ours)
    torchs.load_state_dict(copy.deepcopy(ours.state_dict()))
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        q.data.copy_(p.data)
    step(ours, torchs, seed=1)
    # torch's SGD counts no steps
    names = ("ema", "step") if options.rule == "sgd" else ("ema",)
    assert_same_optimizers(without(ours, *names), without(torchs, *names))


@by_backend
def test_turned_on_and_off(backend: str) -> None:
    ours, never = (averaging_optimizer(ADAM, backend) for _ in range(2))
    for number, decay in enumerate([None, 0.5, None, 0.5, None]):
        for group in ours.param_groups:
            group["ema_decay"] = decay
        weights = values(ours)
        step(ours, never, seed=number)
        if decay is not None:  # they begin with the weights of now, also the second time
            assert_averaged(ours, weights, decay)
        else:
            assert not any("ema" in entry for entry in ours.state.values())
    assert_same_optimizers(ours, never)


MEANWHILE: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda ours: ours,
    "copied": copy.deepcopy,
    "loaded": lambda ours: [ours.load_state_dict(ours.state_dict()), ours][1],
    "a group more": lambda ours: [ours.add_param_group({"params": [torch.ones(1)]}), ours][1],
}


@pytest.mark.parametrize("meanwhile", MEANWHILE.values(), ids=MEANWHILE)
def test_turned_on_again_and_continued_before_the_next_step(
    meanwhile: Callable[[Any], Any],
) -> None:
    ours = averaging_optimizer(ADAM, "cpu", ema_decay=0.5)
    train(ours)
    for number, decay in ((7, None), (8, 0.5)):
        for group in ours.param_groups:
            group["ema_decay"] = decay
        if decay is not None:
            weights = values(ours)
            with ours.ema_weights():  # there are none yet
                assert_all_same(values(ours), weights)
            ours = meanwhile(ours)
        step(ours, seed=number)
    for param, before in zip(all_params(ours), weights, strict=False):
        torch.testing.assert_close(ours.state[param]["ema"], (param.detach() + before) / 2)


@by_backend
def test_a_first_step_that_a_scaler_skips(backend: str) -> None:
    ours, fresh = (averaging_optimizer(ADAM, backend, ema_decay=0.9) for _ in range(2))
    ours.found_inf = torch.ones((), device=all_params(ours)[0].device)
    train(ours, steps=range(1))
    ours.found_inf.zero_()
    train(ours, fresh)
    assert_same_optimizers(ours, fresh)


@pytest.mark.skipif(not HostCudaBackend.status().available, reason=HostCudaBackend.status().reason)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_replays_average_too(options: Options) -> None:
    ours, eager = (averaging_optimizer(options, "cuda-on-host", ema_decay=0.9) for _ in range(2))
    for group in ours.param_groups:
        group["capturable"] = True
    train(ours, eager, steps=range(0, 3, 2))
    table = ours._engine.units[0].table
    for _ in range(3):
        ours._engine.units[0].backend.replay()
        # parameters without elements are counted outside of the kernel
        table.steps[table.counts._empty] += 1
        eager.step()
    assert_same_optimizers(ours, eager)
