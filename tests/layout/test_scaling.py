"""Gradient scalers: unscaled in the step, skipped without the host knowing, the same bits as unscaled by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from backends import by_backend, optimizer_by
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
from tolerances import SEVERAL_STEPS
from torch import nn
from torch.nn.utils import clip_grad_norm_

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

SCALE = 1024.0
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
OVERFLOWS = (0, 3)  # also the very first step


def _set_scaled_gradients(optimizer: Any, number: int, scale: float) -> None:
    set_gradients(optimizer.param_groups, number, 3 if number % 3 == 1 else 0)
    with_gradient = [p for p in all_params(optimizer) if p.grad is not None]
    for p in with_gradient:
        p.grad.mul_(scale)
    if number in OVERFLOWS:
        next(p for p in with_gradient if p.numel()).grad[-1] = torch.inf


def _train(optimizer: Any, unscale: bool = False, clip: Any = None) -> Any:
    """Six steps with a scaler, two of them skipped; the scale halves after each of these."""
    device = all_params(optimizer)[0].device.type
    scaler = torch.amp.GradScaler(device, init_scale=SCALE, growth_interval=100)
    scaler.scale(torch.ones((), device=device))  # creates its tensors
    for number in range(6):
        _set_scaled_gradients(optimizer, number, scaler.get_scale())
        if unscale:
            scaler.unscale_(optimizer)
            if clip is not None:
                clip_grad_norm_(all_params(optimizer), clip)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == SCALE / 4
    return optimizer


def _by_hand(optimizer: Any) -> Any:
    """The same without a scaler."""
    for number in range(6):
        if number not in OVERFLOWS:
            _set_scaled_gradients(optimizer, number, 1.0)
            optimizer.step()
    return optimizer


@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_backend
def test_as_if_the_skipped_steps_had_never_been(backend: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time")
    scaled = _train(optimizer_by(options, backend, fused=True))
    # a scale that is a power of two rounds nothing
    assert_same_optimizers(scaled, _by_hand(optimizer_by(options, backend)))


@pytest.mark.parametrize("options", kernel_options(), ids=str)
@pytest.mark.parametrize("fused", [None, True])
def test_as_torch(options: Options, fused: bool | None) -> None:
    ours = _train(optimizer_by(options, "cpu", fused=fused))
    groups = [{k: g[k] for k in ("params", "lr")} for g in groups_of(sizes_for(7))]
    torchs = _train(options.torchs(groups))
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


@by_backend
def test_a_skipped_step_moves_nothing(backend: str) -> None:
    optimizer = optimizer_by(ADAM, backend)
    device = all_params(optimizer)[0].device
    set_gradients(optimizer.param_groups, 0)
    optimizer.found_inf = torch.ones((), device=device)
    optimizer.grad_scale = torch.full((), SCALE, device=device)
    optimizer.step()  # where counts live on the device they move there now
    before = Snapshot(optimizer)
    launches = optimizer.launches
    optimizer.step()
    optimizer.launches = launches
    before.assert_unchanged(versions=False)
    assert bool(optimizer.last_step.skipped)
    optimizer.found_inf = torch.zeros((), device=device)
    optimizer.step()
    assert not optimizer.last_step.skipped
    assert all(float(optimizer.state[p]["step"]) == 1 for p in all_params(optimizer))


@pytest.mark.parametrize("limits", [{"body": 1.0, "head": 0.5}, 0.75])
@by_backend
def test_clipping_is_by_the_norm_without_the_scale(backend: str, limits: Any) -> None:
    scaled, plain = (optimizer_by(ADAM, backend, max_grad_norm=limits) for _ in range(2))
    for number in (1, 2):
        _set_scaled_gradients(scaled, number, SCALE)
        device = all_params(scaled)[0].device
        scaled.grad_scale = torch.full((1,), SCALE, device=device)
        scaled.found_inf = torch.zeros((1,), device=device)
        _set_scaled_gradients(plain, number, 1.0)
        scaled.step()
        plain.step()
        ours, theirs = scaled.last_step, plain.last_step
        for role in ("body", "head", "total"):
            assert_same_bits(ours.grad_norm[role], theirs.grad_norm[role])
        for role in ("body", "head"):
            assert_same_bits(ours.clip_factor[role], theirs.clip_factor[role])
    assert_same_optimizers(scaled, plain)


@pytest.mark.parametrize("fused", [None, True])
@by_backend
def test_gradients_that_were_unscaled_are_not_unscaled_again(
    backend: str, fused: bool | None
) -> None:
    ours = _train(optimizer_by(ADAM, backend, fused=fused), unscale=True)
    assert_same_optimizers(ours, _by_hand(optimizer_by(ADAM, backend)))


@pytest.mark.parametrize("fused", [None, True])
def test_unscale_clip_and_step_as_torch(fused: bool | None) -> None:
    ours = _train(optimizer_by(ADAM, "cpu", fused=fused), unscale=True, clip=1.0)
    in_the_step = _train(optimizer_by(ADAM, "cpu", fused=fused, max_grad_norm=1.0))
    groups = [{k: g[k] for k in ("params", "lr")} for g in groups_of(sizes_for(7))]
    torchs = _train(ADAM.torchs(groups), unscale=True, clip=1.0)
    for p, q, r in zip(*map(all_params, (ours, torchs, in_the_step)), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)
        torch.testing.assert_close(r, q, **SEVERAL_STEPS)


def test_several_tables() -> None:
    params = [nn.Parameter(normal(5, i, d)) for i, d in enumerate([torch.float32, torch.float64])]
    ours = sf.StackelbergSGD(params, lr=1.0, backend="auto")
    values = [p.detach().clone() for p in params]
    ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    for p in params:
        p.grad = torch.full_like(p, 8.0)
    ours.step()
    for p, value in zip(params, values, strict=True):
        torch.testing.assert_close(p.detach(), value - 2.0)


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize("value", [1.0, torch.ones(2)])
def test_what_no_scaler_sets(name: str, value: Any) -> None:
    optimizer = optimizer_by(ADAM, "cpu")
    set_gradients(optimizer.param_groups, 0)
    before = Snapshot(optimizer)
    setattr(optimizer, name, value)
    with pytest.raises(TypeError, match=f"{name} must be a tensor of one element"):
        optimizer.step()
    before.assert_unchanged()


def test_a_step_that_raises_leaves_nothing_of_the_scaler() -> None:
    """Or the scaler would take what it left for a scale of the optimizer's own, and divide by both."""
    p = nn.Parameter(torch.ones(3))
    optimizer = sf.StackelbergSGD([p], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(p.sum()).backward()
    optimizer.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr"):
        scaler.step(optimizer)
    optimizer.param_groups[0]["lr"] = 1.0
    scaler.step(optimizer)
    assert p.tolist() == [0.0] * 3


def test_a_scaler_without_gradients() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = sf.StackelbergSGD([p], lr=1.0, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    assert p.tolist() == [1.0] * 3


@pytest.mark.parametrize("then", ["go on", "copy", "load", "another rule"])
@by_backend
def test_a_first_step_that_is_skipped_creates_no_momentum(backend: str, then: str) -> None:
    options = Options("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5})
    skipped, fresh = (optimizer_by(options, backend) for _ in range(2))
    device = all_params(skipped)[0].device
    set_gradients(skipped.param_groups, 0)
    skipped.found_inf = torch.ones((), device=device)
    skipped.step()
    del skipped.found_inf
    if then == "copy":
        skipped = copy.deepcopy(skipped)
    elif then == "load":
        skipped.load_state_dict(copy.deepcopy(skipped.state_dict()))
    elif then == "another rule":
        for optimizer in (skipped, fresh):
            optimizer.param_groups[0]["weight_decay"] = 0.1
    for number in (1, 2):
        for optimizer in (skipped, fresh):
            set_gradients(optimizer.param_groups, number)
            optimizer.step()
    assert_same_optimizers(skipped, fresh)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_nobody_measured_a_step_that_the_host_skipped(backend: str) -> None:
    optimizer = optimizer_by(ADAM, backend, max_grad_norm=1.0)
    set_gradients(optimizer.param_groups, 0)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    last = optimizer.last_step
    assert (last.launches, bool(last.skipped)) == (0, True)
    assert all(bool(norm.isnan()) for norm in last.grad_norm.values())
    del optimizer.found_inf
    optimizer.step()
    assert all(bool(norm.isfinite()) for norm in optimizer.last_step.grad_norm.values())


def test_without_a_scaler_nothing_is_said_of_skipping() -> None:
    optimizer = optimizer_by(ADAM, "cpu")
    set_gradients(optimizer.param_groups, 0)
    optimizer.step()
    assert optimizer.last_step.skipped is None
