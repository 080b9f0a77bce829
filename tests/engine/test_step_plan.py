"""Groups that move on every n-th step: the bits of gradients held back, or summed up, outside of the optimizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from by_hand import (
    ADAM,
    LAYOUTS,
    MOMENTUM,
    ByHand,
    assert_same_as_by_hand,
    by_mode,
    optimizer_with_turns,
    pair,
    train,
)
from cases import (
    MIXED,
    Options,
    groups_of,
    kernel_options,
    normal,
    set_gradients,
    sizes_for,
)
from checks import (
    Snapshot,
    all_params,
    assert_same_bits,
    assert_same_optimizers,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting
from stackelberg_fused.engine import launch_unit
from stackelberg_fused.engine.step_plan import StepPlanner


@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_mode
@by_backend
def test_as_by_hand(backend: str, mode: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time; the mixed launch has every rule")
    ours, by_hand = pair(options, backend, mode)
    train(ours, by_hand)
    assert_same_as_by_hand(ours, by_hand)
    assert ours.launches == (0 if backend == "reference" else 7)  # none more for who waits


@pytest.mark.parametrize("limits", [1.0, {"body": 0.5, "head": 2.0}, math.inf], ids=str)
@by_mode
@by_backend
def test_clipping_is_by_the_gradients_that_move(backend: str, mode: str, limits: Any) -> None:
    if is_interpreting() and limits != 1.0:
        pytest.skip("left out: the interpreter's time")
    every = {"body": 3, "head": 2}
    ours, by_hand = pair(ADAM, backend, mode, max_grad_norm=limits)
    for group in ours.param_groups:
        group["update_every"] = every[group["role"]]
    by_hand.begin(mode, tuple(group["update_every"] for group in ours.param_groups))
    for number in range(6):
        train(ours, by_hand, steps=range(number, number + 1))
        last, expected = ours.last_step, by_hand.optimizer.last_step
        for role, norm in last.grad_norm.items():
            assert_same_bits(norm, expected.grad_norm[role])
            assert role == "total" or bool(norm) == ((number + 1) % every[role] == 0)
        for role, factor in last.clip_factor.items():
            assert_same_bits(factor, expected.clip_factor[role])
    assert_same_as_by_hand(ours, by_hand)
    assert last.launches == (0 if backend == "reference" else 2)


@by_mode
@by_backend
def test_a_scaler_that_skips_in_the_middle_of_a_round(backend: str, mode: str) -> None:
    ours, by_hand = pair(ADAM, backend, mode)
    device = all_params(ours)[0].device
    for number in range(9):
        # a scale that is a power of two rounds nothing
        scale, overflow = 2.0 ** (number % 4), number in (0, 2, 5)
        set_gradients(ours.param_groups, number, 3 if number % 2 else 0)
        for p in all_params(ours):
            if p.grad is not None:
                p.grad.mul_(torch.inf if overflow else scale)
        ours.grad_scale = torch.full((), scale, device=device)
        ours.found_inf = torch.full((), float(overflow), device=device)
        ours.step()
        if not overflow:
            set_gradients(by_hand.param_groups, number, 3 if number % 2 else 0)
            by_hand.step()
    assert_same_as_by_hand(ours, by_hand)


@by_mode
@by_backend
def test_each_role_counts_its_own_steps(backend: str, mode: str) -> None:
    ours, by_hand = pair(ADAM, backend, mode)
    for number, role in enumerate(["body", "head", "head", None, "body", "head", None, "head"]):
        train(ours, by_hand, steps=range(number, number + 1), role=role)
    assert_same_as_by_hand(ours, by_hand)


@by_mode
@by_backend
def test_steps_without_gradients(backend: str, mode: str) -> None:
    """Not counted where nobody has any; else counted, by those without too."""
    ours, by_hand = pair(ADAM, backend, mode)
    history = [(), ("head",), ("body", "head"), (), ("body",), ("head",), ("head",)]
    for number, present in enumerate(history):
        for side in (ours, by_hand):
            for group in side.param_groups:
                set_gradients([group], number, 0 if group["role"] in present else 1)
            side.step()
    assert_same_as_by_hand(ours, by_hand)
    assert ours.launches == (0 if backend == "reference" else 5)
    before = Snapshot(ours)
    ours.step(role="body")
    before.assert_unchanged()


@by_mode
@by_backend
def test_a_parameter_frozen_halfway(backend: str, mode: str) -> None:
    ours, by_hand = pair(ADAM, backend, mode)
    for number in range(5):
        for side in (ours, by_hand):
            set_gradients(side.param_groups, number)
            for group in side.param_groups if number else ():
                group["params"][-1].requires_grad_(False).grad = None
            side.step()
    assert_same_as_by_hand(ours, by_hand)


@by_backend
def test_nan_in_a_gradient_that_goes_by(backend: str) -> None:
    ours, by_hand = pair(ADAM, backend, "latest", max_grad_norm=1.0)
    for number in range(3):
        for side in (ours, by_hand):
            set_gradients(side.param_groups, number)
        for group in ours.param_groups:
            for p in group["params"] if (number + 1) % group["update_every"] else ():
                p.grad.fill_(torch.nan)
        ours.step()
        by_hand.step()
    assert_same_as_by_hand(ours, by_hand)
    assert not any(p.isnan().any() for p in all_params(ours))


@by_backend
def test_every_step_is_as_no_turns_at_all(backend: str) -> None:
    ours, plain = (
        optimizer_with_turns(ADAM, backend, mode, every=(1,)) for mode in ("mean", "latest")
    )
    train(ours, plain, steps=range(3))
    assert_same_optimizers(ours, plain)
    assert not any({"grad_sum", "waited"} & set(entry) for entry in ours.state.values())


@by_backend
def test_no_state_for_parameters_without_gradients(backend: str) -> None:
    plain = optimizer_with_turns(ADAM, backend, "latest", every=(1,))
    set_gradients(plain.param_groups, 0, 3)
    plain.step()
    assert list(plain.state) == [p for p in all_params(plain) if p.grad is not None]


@by_mode
def test_by_role_and_with_a_schedule(mode: str) -> None:
    how = {"update_every": {"body": 3}, "update_every_grads": mode, "backend": "cpu"}
    ours, by_hand = MOMENTUM.ours(groups_of(sizes_for(3)), **how), ByHand(MOMENTUM, "cpu", mode)
    by_hand.begin(mode, (3, 3, 1))
    schedules = [ExponentialLR(optimizer, 0.8) for optimizer in (ours, by_hand.optimizer)]
    for number in range(7):
        train(ours, by_hand, steps=range(number, number + 1))
        for schedule in schedules:
            schedule.step()
    assert_same_as_by_hand(ours, by_hand)


def _gapped() -> Tensor:
    return normal((50, 200), 3)[:, ::2]


@pytest.mark.parametrize("gapped", [False, True])
@pytest.mark.parametrize("backend", LAYOUTS)
@by_mode
def test_waiting_leaves_graphs_good(mode: str, backend: str, gapped: bool) -> None:
    p = nn.Parameter(_gapped() if gapped else normal(20, 1))
    how = {"update_every": 2, "update_every_grads": mode}
    ours = sf.StackelbergSGD([p], lr=0.1, backend=chosen(backend)[0], **how)
    loss, version = p.square().sum(), p._version
    p.grad = torch.ones_like(p)
    ours.step()
    assert p._version == version
    loss.backward()
    loss = p.square().sum()
    ours.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("last", ["a gradient", "None"])
@pytest.mark.parametrize("counted", ["by the host", "on the device", "there after the host"])
@pytest.mark.parametrize("backend", ["cpu", "cuda-on-host"])
def test_moving_is_noted_by_autograd(backend: str, counted: str, last: str) -> None:
    """Also where nothing but an earlier gradient moves, and at a stage of waiting that the host has counted before."""
    params = [nn.Parameter(normal(20, i)) for i in range(2)]
    how = {"update_every": 2, "update_every_grads": "mean"}
    how["capturable"] = counted == "on the device"
    ours = sf.StackelbergAdamW(params, lr=0.1, backend=chosen(backend)[0], **how)
    for number in range(4):
        for p in params:
            p.grad = torch.ones_like(p)
        if number == 2 and counted == "there after the host":
            ours.found_inf = torch.zeros(())
        if number == 3 and last == "None":
            params[0].grad = None
        before, version = params[0].detach().clone(), params[0]._version
        ours.step()
    assert not torch.equal(params[0], before)
    assert params[0]._version > version


@pytest.mark.parametrize("backend", LAYOUTS)
@by_mode
def test_layouts(mode: str, backend: str) -> None:
    """Gapped, transposed, 0-d and without elements, beside contiguous copies; also by earlier gradients alone."""
    values = [_gapped(), normal((30, 40), 2).t(), normal((), 4), normal((0, 3), 5)]
    params = [nn.Parameter(v) for v in values]
    twins = [nn.Parameter(v.clone(memory_format=torch.contiguous_format)) for v in values]
    how = {"update_every": 3, "update_every_grads": mode, "backend": chosen(backend)[0]}
    pair = [ADAM.ours(side, **how) for side in (params, twins)]
    for number, skipped in enumerate([(), (1,), (0, 2), (0,), (3,), (1, 2, 0)]):
        for optimizer in pair:
            set_gradients(optimizer.param_groups, number)
            for i in skipped:
                all_params(optimizer)[i].grad = None
            optimizer.step()
        assert_same_optimizers(*pair)


@by_mode
def test_tables_of_several_dtypes_take_their_turns_together(mode: str) -> None:
    """One group over two tables, of which the second has no gradient on the first step."""
    params = [nn.Parameter(normal(5, i, d)) for i, d in enumerate([torch.float32, torch.float64])]
    ours = sf.StackelbergSGD(params, lr=1.0, update_every=2, update_every_grads=mode)
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.ones_like(params[0])
    ours.step()
    params[1].grad = torch.ones_like(params[1])
    ours.step()
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True))


BAD = [{"update_every": v} for v in (0, -1, 1.5, True, "3", None, 2**21, {"body": 2})]
BAD += [{"update_every_grads": "sum"}, {"update_every_grads": None}]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_values(bad: dict[str, Any]) -> None:
    name = r"param group 1 \(head\).*update_every"
    ours = sf.StackelbergAdamW(groups_of([[3], [4]]), update_every=2, update_every_grads="mean")
    train(ours, steps=range(1))
    before, kept = Snapshot(ours), dict(ours.param_groups[1])
    with pytest.raises((ValueError, TypeError), match=r"param group 2 \(body\).*update_every"):
        ours.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
    ours.param_groups[1].update(bad)
    with pytest.raises((ValueError, TypeError), match=name):
        ours.step()
    before.assert_unchanged()
    ours.param_groups[1].update(kept)
    ours.step()  # the round goes on
    assert all(float(ours.state[p]["step"]) == 1 for p in all_params(ours))
    groups = groups_of([[3], [4]])
    groups[1].update(bad)
    with pytest.raises((ValueError, TypeError), match=name):
        sf.StackelbergAdamW(groups)


def test_bad_roles_and_differentiable_steps() -> None:
    with pytest.raises(ValueError, match="unknown role 'tail'"):
        sf.StackelbergAdamW(groups_of([[3], [4]]), update_every={"tail": 2})
    with pytest.raises(ValueError, match=r"param group 0 \(body\): differentiable"):
        sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], differentiable=True, update_every=2)


def test_a_plan_that_was_refused_looks_again_at_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A capture is refused for a state that is not there yet, and made once another step has allocated it."""
    capturing = False

    def refuse(_table: Any, what: str) -> None:
        if capturing:
            raise RuntimeError(f"{what} is not on the device yet")

    monkeypatch.setattr(launch_unit, "refuse_in_capture", refuse)
    body, head = (nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [body]}, {"params": [head], "role": "head"}]
    ours = sf.StackelbergAdamW(groups, backend="cpu")
    body.grad, head.grad = torch.ones(3), torch.ones(3)
    ours.step(role="body")
    capturing = True
    with pytest.raises(RuntimeError, match="state of parameter 0 of param group 1"):
        ours.step()
    capturing = False
    ours.step(role="head")
    capturing = True
    ours.step()
    assert [float(ours.state[p]["step"]) for p in (body, head)] == [2, 2]


@pytest.mark.parametrize("every", [1, 2])
def test_sets_of_gradients_that_come_again_are_planned_once(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An actor that moves in every second step, or players that take turns."""
    made = []
    make = StepPlanner._make

    def counted(planner: StepPlanner, *args: Any) -> Any:
        made.append(args)
        return make(planner, *args)

    monkeypatch.setattr(StepPlanner, "_make", counted)
    body, head = (nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [body]}, {"params": [head], "role": "head"}]
    ours = sf.StackelbergAdamW(groups, backend="cpu", update_every={"body": every})
    for number in range(20):
        body.grad = torch.ones(3) if number % 2 else None
        head.grad = torch.ones(3)
        ours.step()
        if number == 5:
            made.clear()
    assert not made
    assert int(ours.state[head]["step"]) == 20
    assert int(ours.state[body]["step"]) == 10
