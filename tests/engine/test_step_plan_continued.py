"""Groups that take turns, interrupted in the middle of a round: checkpoints, copies, changes, CUDA graphs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from backends import by_backend
from by_hand import (
    ADAM,
    LAYOUTS,
    MOMENTUM,
    ByHand,
    assert_same_as_by_hand,
    by_mode,
    optimizer_with_turns,
    train,
)
from cases import MIXED, Options, set_gradients
from checks import all_params, assert_same_bits, assert_same_optimizers
from needs import needs_shim
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.interrupts import make_calls
from stackelberg_fused.backends.triton import is_interpreting


def _continued(ours: Any, again: Any, how: str) -> Any:
    if how == "load":
        again.load_state_dict(copy.deepcopy(ours.state_dict()))
        for p, q in zip(all_params(again), all_params(ours), strict=True):
            p.data.copy_(q.data)
        return again
    return copy.deepcopy(ours) if how == "deepcopy" else pickle.loads(pickle.dumps(ours))


@pytest.mark.parametrize("how", ["load", "deepcopy", "pickle"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("options", [ADAM, MOMENTUM], ids=str)
@by_mode
@by_backend
def test_continuing_in_the_middle_of_a_round(
    backend: str, mode: str, options: Options, capturable: bool, how: str
) -> None:
    if is_interpreting() and (how != "load" or options is MOMENTUM):
        pytest.skip("left out: the interpreter's time; what is carried over is the host's")
    for stop in (1, 4):
        ours, again = (
            optimizer_with_turns(options, backend, mode, capturable=capturable) for _ in range(2)
        )
        for number in range(stop):
            set_gradients(ours.param_groups, number, 2)  # of some no gradient was seen until then
            ours.step()
        again = _continued(ours, again, how)
        train(ours, again, steps=range(stop, stop + 3))
        assert_same_optimizers(again, ours)


@pytest.mark.parametrize("how", ["load", "deepcopy", "rebuild"])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("backend", LAYOUTS)
def test_a_group_without_any_gradient_yet_waits_on(
    backend: str, capturable: bool, how: str
) -> None:
    ours, same, again = (
        optimizer_with_turns(ADAM, backend, "mean", capturable=capturable) for _ in range(3)
    )
    for optimizer in (ours, same):
        set_gradients(optimizer.param_groups, 0)
        set_gradients(optimizer.param_groups[:1], 0, 1)
        optimizer.step()
    if how == "rebuild":
        ours.param_groups[1]["params"] = list(ours.param_groups[1]["params"])
        again = ours
    else:
        again = _continued(ours, again, how)
    for number in (1, 2):
        train(again, same, steps=range(number, number + 1))
        for p, q in zip(all_params(again), all_params(same), strict=True):
            assert_same_bits(p, q)


def test_counts_in_a_state_dict_are_not_rounded_to_the_parameters_dtype() -> None:
    params = [nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2)]
    how = {"lr": 1.0, "update_every": 200, "update_every_grads": "mean", "backend": "reference"}
    ours, again = (sf.StackelbergSGD([p], **how) for p in params)
    params[0].grad = torch.ones_like(params[0])
    for _ in range(150):
        ours.step()
    again.load_state_dict(ours.state_dict())
    # bfloat16 counts to 256
    assert float(again.state[params[1]]["waited"]) == float(ours.state[params[0]]["waited"]) == 301


@pytest.mark.parametrize("change", [{"update_every": 2}, {"update_every_grads": "mean"}], ids=str)
@pytest.mark.parametrize("meanwhile", ["nothing", "load", "deepcopy", "rebuild"])
@by_backend
def test_a_change_begins_a_new_round(backend: str, meanwhile: str, change: dict[str, Any]) -> None:
    mode = "latest" if "update_every_grads" in change else "mean"
    every = (change["update_every"],) if "update_every" in change else (5,)
    ours, by_hand = (side(ADAM, backend, mode) for side in (optimizer_with_turns, ByHand))
    for group in ours.param_groups:
        group["update_every"] = 5
    by_hand.begin(mode, (5,))
    train(ours, by_hand, steps=range(3))
    if meanwhile in ("load", "deepcopy"):
        ours = _continued(ours, optimizer_with_turns(ADAM, backend, mode), meanwhile)
    for group in ours.param_groups:
        group.update(change)
    if meanwhile == "rebuild":
        ours.param_groups[1]["params"] = list(ours.param_groups[1]["params"])
    by_hand.begin("mean", every)
    train(ours, by_hand, steps=range(3, 9))
    assert_same_as_by_hand(ours, by_hand)


@needs_shim
@pytest.mark.parametrize("options", [ADAM, MOMENTUM, MIXED], ids=str)
@by_mode
def test_replays_take_turns(mode: str, options: Options) -> None:
    ours, eager = (
        optimizer_with_turns(options, "cuda-on-host", mode, capturable=capturable)
        for capturable in (True, False)
    )
    train(ours, eager, steps=range(1))
    unit = ours._engine.units[0]
    table, active = unit.table, unit.gradients.active
    for _ in range(7):
        unit.backend.replay()
        # parameters without elements are counted outside of the kernel
        turns = table.update_every, table.sums
        make_calls(table.counts.advances_of_empty(table.spans[None], active, *turns, None))
        eager.step()
        assert_same_optimizers(ours, eager)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@by_mode
def test_a_cuda_graph(mode: str, backend: str) -> None:
    more = {"max_grad_norm": 1.0, "ema_decay": 0.9}
    ours = optimizer_with_turns(ADAM, backend, mode, capturable=True, **more)
    eager = optimizer_with_turns(ADAM, backend, mode, **more)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        train(ours, eager, steps=range(1))
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ours.step()
    for _ in range(7):
        graph.replay()
        eager.step()
    torch.cuda.synchronize()
    assert_same_optimizers(ours, eager)
    assert_same_bits(ours.last_step.grad_norm["total"], eager.last_step.grad_norm["total"])


def test_a_group_that_goes_leaves_the_rounds_of_others() -> None:
    params = [nn.Parameter(torch.zeros(3)) for _ in range(2)]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "update_every": 4}]
    ours = sf.StackelbergSGD(groups, lr=1.0, backend="cpu", update_every_grads="mean")
    for number in range(4):
        if number == 3:
            del ours.param_groups[0]
        for p in params:
            p.grad = torch.full((3,), float(number))
        ours.step()
    assert params[1].tolist() == [-1.5] * 3


def test_long_rounds_are_told_apart_by_what_a_step_does() -> None:
    ours = optimizer_with_turns(ADAM, "cpu", "mean", every=(1000,))
    for number in range(300):
        if number < 2:
            set_gradients(ours.param_groups, number)
        ours.step()
    assert len(ours._engine.units[0]._planner._plans) == 2  # nothing summed up yet, and something
    assert {int(ours.state[p]["waited"]) for p in all_params(ours)} == {601}


def test_an_edit_that_fails_halfway_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters of two dtypes are in two tables, the first of which runs out of memory."""
    params = [nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in (torch.float32, torch.float64)]
    ours = sf.StackelbergSGD(params, lr=1.0, backend="reference")
    for p in params:
        p.grad = torch.ones_like(p)
    ours.step()
    ours.param_groups[0]["update_every"] = 3
    with monkeypatch.context() as patch:
        patch.setattr(ours._engine.units[0], "follow", lambda accepted: [][0])
        with pytest.raises(IndexError):
            ours.step()
    for _ in range(5):
        ours.step()
    assert [p.tolist() for p in params] == [[-2.0] * 3] * 2


EDITS = [{"update_every": 2}, {"update_every_grads": "latest"}, {"update_every": 5}]


@pytest.mark.parametrize("copied", [copy.deepcopy, None], ids=["copied", "loaded"])
@pytest.mark.parametrize("edit", EDITS, ids=str)
def test_a_round_that_was_edited_begins_anew_also_where_it_is_continued_elsewhere(
    edit: dict[str, Any], copied: Any
) -> None:
    def fresh() -> Any:
        p = nn.Parameter(torch.zeros(3))
        return sf.StackelbergSGD([p], lr=1.0, update_every=4, update_every_grads="mean")

    def step(optimizer: Any) -> float:
        (p,) = optimizer.param_groups[0]["params"]
        p.grad = torch.ones(3)
        optimizer.step()
        return p[0].item()

    ours = fresh()
    for _ in range(3):
        step(ours)
    ours.param_groups[0].update(edit)
    if copied is None:
        again = fresh()
        again.load_state_dict(ours.state_dict())
    else:
        again = copied(ours)
    assert [step(again) for _ in range(6)] == [step(ours) for _ in range(6)]
