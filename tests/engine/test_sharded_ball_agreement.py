"""Ranks that have to agree on balls: told where they differ, asked where a step of one seems to ask for state alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from ball_runs import BODIES, HEADS, BallRun, assert_equal
from cases import normal
from checks import Snapshot
from ranks import Ranks, of_ranks
from sharded_layouts import lay_out
from torch import nn
from wrapped_models import local, whole

import stackelberg_fused as sf
from stackelberg_fused.engine import sharded_balls

pytestmark = of_ranks
WAITING = pytest.mark.parametrize(
    "how", [{}, {"constraint": None, "max_grad_norm": 1.0}], ids=["ball", "clipped"]
)


def _different_balls() -> str:
    run = BallRun("rows", "cpu", constraint={"body": sf.L2Ball(1.0 + dist.get_rank())})
    run.give(0)
    before = Snapshot(run.optimizer)
    with pytest.raises(ValueError, match=r"constraint of param group 0.*radius=1.0.*radius=2.0"):
        run.optimizer.step()
    before.assert_unchanged()
    return ""


def test_ranks_with_different_balls_are_told(ranks: Ranks) -> None:
    ranks(2, _different_balls)


def _warmed_up_from_zero(how: dict[str, Any]) -> None:
    """A rank that has only zeros must not take the first step, at a rate of 0, for one that asks for state alone."""
    ours, expected = (BallRun(layout, "cpu", **how) for layout in ("rows", None))
    for run in (ours, expected):
        schedule = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: min(step / 2, 1))
        for number in range(3):
            run.give(number)
            for p in run.params:
                rows = len(local(lay_out([torch.zeros(p.shape)], "rows")[0]))
                begin = torch.tensor(rows)
                dist.broadcast(begin, 0)
                if run is expected:
                    p.grad[int(begin) :] = 0.0
                elif dist.get_rank() == 1:
                    local(p.grad).zero_()
            run.optimizer.step()
            schedule.step()
    assert_equal(ours, expected)


@WAITING
def test_a_rank_that_has_only_zeros_at_a_rate_of_zero(ranks: Ranks, how: dict[str, Any]) -> None:
    ranks(2, _warmed_up_from_zero, how)


def _built_again(edit: str, how: dict[str, Any]) -> None:
    """Ranks of which one had no gradient yet come to a step at a rate of 0, which only looks like one for state."""
    run = BallRun("rows", "cpu", rule=sf.StackelbergAdamW, **how)
    is_second = dist.get_rank() == 1
    run.step(0, of=() if is_second else (*BODIES, *HEADS))
    if edit == "another group":
        run.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    elif edit == "another state":
        run.optimizer.load_state_dict(run.optimizer.state_dict())
    else:
        run.optimizer.param_groups[0]["seed"] = 5
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    run.give(1)
    for p in run.params:
        if is_second:
            local(p.grad).zero_()
    run.optimizer.step()
    assert int(run.optimizer.state[run.params[0]]["step"]) == (1 if is_second else 2)


@WAITING
@pytest.mark.parametrize("edit", ["another group", "another state", "another seed"])
def test_an_optimizer_built_again_before_all_ranks_have_state(
    ranks: Ranks, edit: str, how: dict[str, Any]
) -> None:
    ranks(2, _built_again, edit, how)


def _resumed(how: dict[str, Any]) -> None:
    """State that one rank alone has loaded, and a rate that one alone has set to 0."""
    for has_state, is_zero in ((0, (0, 1)), (1, (0, 1)), (None, (1,))):
        before, run = BallRun("rows", "cpu", **how), BallRun("rows", "cpu", **how)
        alone = BallRun("rows", "cpu", constraint=None)
        alone.step(0)
        if dist.get_rank() == has_state:
            saved = before.optimizer.state_dict()
            saved["state"] = alone.optimizer.state_dict()["state"]
            run.optimizer.load_state_dict(saved)
        if dist.get_rank() in is_zero:
            for group in run.optimizer.param_groups:
                group["lr"] = 0.0
        run.step(1)
        run.step(2)
        steps = int(run.optimizer.state[run.params[0]]["step"])
        assert steps == 2 + (dist.get_rank() == has_state)


@WAITING
def test_ranks_of_which_one_has_state(ranks: Ranks, how: dict[str, Any]) -> None:
    ranks(2, _resumed, how)


def _differ_at_a_rate_of_zero() -> str:
    how: dict[str, Any] = {"constraint": {"body": sf.L2Ball(1.0)}}
    if dist.get_rank() == 1:
        how = {"constraint": None, "max_grad_norm": 1.0}
    run = BallRun("rows", "cpu", **how)
    torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: step / 10)
    run.give(0)
    before = Snapshot(run.optimizer)
    with pytest.raises(ValueError, match="max_grad_norm is None on rank 0") as error:
        run.optimizer.step()
    before.assert_unchanged()
    return str(error.value)


def test_ranks_that_differ_are_told_at_a_rate_of_zero(ranks: Ranks) -> None:
    first, second = ranks(2, _differ_at_a_rate_of_zero)
    assert first == second


def _asks_for_state() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    layer = nn.Linear(5, 1)
    layer.weight = nn.Parameter(lay_out([normal((1, 5), 1)], "rows")[0])
    layer.bias = nn.Parameter(lay_out([normal((1,), 2)], "rows")[0])
    optimizer = sf.StackelbergAdamW(
        layer.parameters(), lr=0.1, constraint=sf.L2Ball(0.1), max_grad_norm=1.0
    )
    kept = whole(layer.weight.detach()).clone()
    get_optimizer_state_dict(layer, optimizer)
    assert torch.equal(whole(layer.weight.detach()), kept)
    assert all(int(entry["step"]) == 0 for entry in optimizer.state.values())


def test_a_checkpoint_before_the_first_step(ranks: Ranks) -> None:
    """Also where a rank has no elements."""
    ranks(2, _asks_for_state)


def _captured_first() -> None:
    def refuse(_table: Any, what: str) -> None:
        raise RuntimeError(f"{what} is not on the device yet")

    run = BallRun("rows", "cpu")
    run.step(0)
    run.optimizer.param_groups[0]["constraint"] = sf.L2Ball(1.0)  # its tables are new
    run.give(1)
    before, original = Snapshot(run.optimizer), sharded_balls.refuse_in_capture
    sharded_balls.refuse_in_capture = refuse
    try:
        with pytest.raises(RuntimeError, match="the index of its sharded balls"):
            run.optimizer.step()
        before.assert_unchanged()
    finally:
        sharded_balls.refuse_in_capture = original
    run.optimizer.step()
    assert run.norm(BODIES) <= 1.0
    sharded_balls.refuse_in_capture = refuse  # the index is there
    try:
        run.step(2)
    finally:
        sharded_balls.refuse_in_capture = original


def test_what_a_graph_would_need_is_made_before_anything_is_modified(ranks: Ranks) -> None:
    ranks(2, _captured_first)
