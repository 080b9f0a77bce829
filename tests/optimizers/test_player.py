"""One role of an optimizer as an optimizer of its own: for schedulers, gradient scalers, hooks and copies."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from backends import by_backend, chosen
from cases import normal
from checks import assert_same_bits, assert_same_optimizers
from torch import nn
from torch.optim.lr_scheduler import (
    LambdaLR,
    LinearLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from two_players import fill, sgd_of_two, values_of

import stackelberg_fused as sf


def test_it_is_always_the_same_and_an_optimizer() -> None:
    ours = sgd_of_two()
    head = ours.player("head")
    assert head is ours.player("head") is not ours.player("body")
    assert isinstance(head, torch.optim.Optimizer)
    assert [g["role"] for g in head.param_groups] == ["head"]
    assert head.param_groups[0] is ours.param_groups[1]
    assert head.state is ours.state
    assert head.defaults is ours.defaults
    assert repr(head) == "StackelbergSGD.player('head')"
    for role in ("Head", None):
        with pytest.raises(ValueError, match="role"):
            ours.player(role)
    for name in ("param_groups", "state", "defaults"):
        with pytest.raises(AttributeError, match="optimizer"):
            setattr(head, name, {})


@pytest.mark.parametrize("grads", ["gather", "flat"])
def test_step_and_zero_grad_are_about_one_role(grads: str) -> None:
    ours = sgd_of_two(grads=grads)
    body, head = (g["params"][0] for g in ours.param_groups)
    before = values_of(ours)
    for p in (body, head):
        p.sum().backward()
    ours.player("head").step()
    assert_same_bits(body.detach(), before[0])
    assert not torch.equal(head, before[1])
    ours.player("body").zero_grad()
    assert (body.grad is None) if grads == "gather" else not body.grad.count_nonzero()
    assert bool((head.grad == 1.0).all())
    ours.player("head").step(zero_grad=True)
    assert (head.grad is None) if grads == "gather" else not head.grad.count_nonzero()


def test_zero_grad_as_torch() -> None:
    ours = sgd_of_two()
    fill(ours)
    body, head = (g["params"][0] for g in ours.param_groups)
    held = head.grad
    ours.zero_grad(set_to_none=False, role="head")
    assert head.grad is held
    assert not held.count_nonzero()
    assert bool((body.grad == 1.0).all())
    with pytest.raises(ValueError, match="unknown role"):
        ours.zero_grad(role="tail")


def test_schedulers() -> None:
    """Each player has its own, also composed; no warning of steps that its owner made."""
    ours = sgd_of_two()
    players = {role: ours.player(role) for role in ("body", "head")}
    schedulers: list[Any] = [
        LambdaLR(players["body"], lambda k: 0.5**k),
        SequentialLR(
            players["head"],
            [LinearLR(players["head"], 0.5, total_iters=2), StepLR(players["head"], 1, 0.1)],
            [2],
        ),
    ]
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # of torch 2.8, whose SequentialLR calls its schedulers so
        warnings.filterwarnings("ignore", "The epoch parameter in `scheduler.step", UserWarning)
        for step in range(4):
            rates.append([g["lr"] for g in ours.param_groups])
            fill(ours)
            before = values_of(ours)
            if step % 2:
                ours.step()
            else:
                for role in ("head", "body"):
                    players[role].step()
            for old, new, lr in zip(before, values_of(ours), rates[-1], strict=True):
                torch.testing.assert_close(new, old - lr)
            for scheduler in schedulers:
                scheduler.step()
    assert [r[0] for r in rates] == [0.5, 0.25, 0.125, 0.0625]
    assert [r[1] for r in rates] == pytest.approx([2.5, 3.75, 5.0, 0.5])
    ReduceLROnPlateau(players["body"])


def test_a_scheduler_before_the_first_step_is_warned_of() -> None:
    ours = sgd_of_two()
    scheduler = StepLR(ours.player("head"), 1)
    fill(ours)
    ours.step(role="body")
    with pytest.warns(UserWarning, match="lr_scheduler.step"):
        scheduler.step()


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("overflow", [(), ("body",), ("head",), ("body", "head")])
@by_backend
def test_a_scaler_skips_each_player_on_its_own(
    backend: str, overflow: tuple[str, ...], fused: bool | None
) -> None:
    ours = sgd_of_two(backend, max_grad_norm={"body": 1e9}, fused=fused)
    device = ours.param_groups[0]["params"][0].device
    scaler = torch.amp.GradScaler(device.type, init_scale=8.0)
    before, roles = values_of(ours), ("body", "head")
    scaler.scale(torch.zeros((), device=device))
    fill(ours, *(torch.inf if role in overflow else 16.0 for role in roles))
    for role in roles:
        scaler.step(ours.player(role))
        if fused:
            assert bool(ours.last_step.skipped) == (role in overflow)
        assert ours.player(role).was_stepped == bool(fused or role not in overflow)
    scaler.update()
    assert scaler.get_scale() == (4.0 if overflow else 8.0)
    for role, lr, old, new in zip(roles, (0.5, 5.0), before, values_of(ours), strict=True):
        torch.testing.assert_close(new, old if role in overflow else old - 2.0 * lr)
    _assert_nothing_left_of_a_scaler(ours)


def _assert_nothing_left_of_a_scaler(ours: Any) -> None:
    for name in ("grad_scale", "found_inf"):
        assert not any(hasattr(o, name) for o in (ours, ours.player("head"), ours.player("body")))


@pytest.mark.parametrize("fused", [None, True])
def test_gradients_that_a_scaler_unscaled_before(fused: bool | None) -> None:
    ours, scaler = sgd_of_two(fused=fused), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    fill(ours, 16.0, 16.0)
    before = values_of(ours)
    scaler.unscale_(ours.player("head"))
    for role in ("head", "body"):
        scaler.step(ours.player(role))
    for lr, old, new in zip((0.5, 5.0), before, values_of(ours), strict=True):
        torch.testing.assert_close(new, old - 2.0 * lr)


def test_nothing_is_left_of_a_scaler_after_an_error() -> None:
    ours, scaler = sgd_of_two(fused=True), torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    fill(ours)
    ours.param_groups[1]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr"):
        scaler.step(ours.player("head"))
    _assert_nothing_left_of_a_scaler(ours)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("overflow", ["", "body", "head"])
@pytest.mark.parametrize("head_steps", [1, 3])
@by_backend
def test_an_alternating_step_with_a_scaler(
    backend: str, head_steps: int, overflow: str, fused: bool | None
) -> None:
    """One update of the scale per call, whatever the number of head updates."""
    instance, device = chosen(backend)

    def side(scaled: bool) -> tuple[Any, ...]:
        body, head = nn.Linear(4, 3), nn.Linear(3, 2)
        with torch.no_grad():
            for number, p in enumerate([*body.parameters(), *head.parameters()]):
                p.copy_(normal(tuple(p.shape), number))
        body, head = body.to(device), head.to(device)
        groups = [
            {"params": list(body.parameters())},
            {"params": list(head.parameters()), "role": "head"},
        ]
        optimizer = sf.StackelbergAdamW(groups, lr=0.01, backend=instance, fused=fused)
        scaler = (
            torch.amp.GradScaler(torch.device(device).type, init_scale=1024.0) if scaled else None
        )
        return body, head, optimizer, scaler

    inputs, targets = normal((8, 4), 9).to(device), normal((8, 2), 10).to(device)
    sides = [side(True), side(False)]
    for body, head, optimizer, scaler in sides:
        if scaler is not None and overflow:
            module = body if overflow == "body" else head
            module.bias.register_hook(lambda grad: grad * torch.inf)
        before = [copy.deepcopy(m.state_dict()) for m in (body, head)]
        did = sf.alternating_step(
            body, head, F.mse_loss, optimizer, inputs, targets, head_steps, scaler=scaler
        )
        if scaler is None:
            continue
        assert scaler.get_scale() == (512.0 if overflow else 1024.0)
        assert [bool(step.skipped) for step in did.head] == [overflow == "head"] * head_steps
        assert bool(did.body.skipped) == (overflow == "body")
        for role, module, old in zip(("body", "head"), (body, head), before, strict=True):
            moved = not torch.equal(module.weight, old["weight"])
            assert moved == (role != overflow)
            assert all(p.grad is None for p in module.parameters())
    if not overflow:
        assert_same_optimizers(sides[0][2], sides[1][2])  # a power of two scales exactly


def test_hooks_of_a_player_and_of_its_owner() -> None:
    ours, seen = sgd_of_two(), []
    ours.register_step_post_hook(lambda opt, args, kwargs: seen.append(opt))
    ours.player("head").register_step_post_hook(lambda opt, args, kwargs: seen.append(opt))
    fill(ours)
    ours.player("head").step()
    assert seen == [ours, ours.player("head")]


def test_groups_that_are_added_and_state_dicts() -> None:
    ours = sgd_of_two(momentum=0.9)
    fill(ours)
    ours.step()
    saved = ours.player("head").state_dict()
    assert saved.keys() == ours.state_dict().keys()
    ours.player("head").add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert [g["role"] for g in ours.param_groups] == ["body", "head", "head"]
    again = sgd_of_two(momentum=0.9)
    again.player("body").load_state_dict(saved)
    for p in (p for g in again.param_groups for p in g["params"]):
        assert "momentum_buffer" in again.state[p]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_come_with_an_owner_of_their_own(copied: Any) -> None:
    ours = sgd_of_two()
    again = copied(ours.player("head"))
    assert again.role == "head"
    assert again.param_groups[0] is not ours.param_groups[1]
    before = values_of(ours)
    again.param_groups[0]["params"][0].grad = torch.ones(5, 3)
    again.step()
    for old, new in zip(before, values_of(ours), strict=True):
        assert_same_bits(old, new)


def test_an_error_in_an_alternating_step_leaves_nothing_in_the_scaler() -> None:
    body, head = nn.Linear(4, 3), nn.Linear(3, 2)
    groups = [
        {"params": list(body.parameters())},
        {"params": list(head.parameters()), "role": "head"},
    ]
    ours, scaler = sf.StackelbergSGD(groups, lr=0.01), torch.amp.GradScaler("cpu", init_scale=8.0)
    calls = []

    def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return F.mse_loss(outputs, targets)

    batch = normal((8, 4), 1), normal((8, 2), 2)
    with pytest.raises(KeyboardInterrupt):
        sf.alternating_step(body, head, loss_fn, ours, *batch, scaler=scaler)
    assert not scaler._per_optimizer_states
    sf.alternating_step(body, head, loss_fn, ours, *batch, scaler=scaler)
