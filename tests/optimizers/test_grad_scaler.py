"""`sf.GradScaler` beside torch's: the same steps are skipped, the same weights and scale come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from backends import by_backend, chosen, optimizer_by
from cases import MIXED, Options, groups_of, kernel_options, normal, set_gradients, sizes_for
from checks import Snapshot, all_params, assert_same_bits, assert_same_optimizers
from scaled import (
    ADAM,
    SCALE,
    SCALERS,
    by_fused,
    new_scaler,
    train_scaled,
)
from tolerances import SEVERAL_STEPS
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting


@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_backend
def test_as_with_torchs_scaler(backend: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time")
    ours, torchs = (optimizer_by(options, backend, fused=True) for _ in SCALERS)
    assert train_scaled(sf.GradScaler, ours) == train_scaled(torch.amp.GradScaler, torchs)
    assert_same_optimizers(ours, torchs)


@by_fused
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_as_torchs_optimizer_with_torchs_scaler(options: Options, fused: bool | None) -> None:
    ours = optimizer_by(options, "cpu", fused=fused)
    torchs = options.torchs([{k: g[k] for k in ("params", "lr")} for g in groups_of(sizes_for(7))])
    assert train_scaled(sf.GradScaler, ours) == train_scaled(torch.amp.GradScaler, torchs)
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


SETTINGS: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 0.5},
    "clipped by role": {"max_grad_norm": {"body": 0.25, "head": 2.0}},
    "average": {"ema_decay": 0.9},
    "turns": {"update_every": {"body": 3}},
    "turns, mean, clipped": {
        "update_every": {"body": 3},
        "update_every_grads": "mean",
        "max_grad_norm": 0.5,
    },
    "flat": {"grads": "flat"},
    "8 bits": {"state_dtype": "8bit"},
    "ball": {"constraint": {"body": sf.L2Ball(5.0)}},
}


@pytest.mark.filterwarnings("ignore:.*not in the flat buffer:UserWarning")
@pytest.mark.parametrize("name", SETTINGS)
@by_backend
def test_with_everything_that_a_step_may_do(backend: str, name: str) -> None:
    ours, torchs = (optimizer_by(ADAM, backend, fused=True, **SETTINGS[name]) for _ in SCALERS)
    assert train_scaled(sf.GradScaler, ours) == train_scaled(torch.amp.GradScaler, torchs)
    assert_same_optimizers(ours, torchs)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("size", [1, 3, 15, 1000, 1023, 1025, 4095, 4096, 4097, 9000])
@by_backend
def test_an_infinity_is_found_wherever_it_is(backend: str, size: int, value: float) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.ones(size, device=device))
    ours, scaler = (
        sf.StackelbergSGD([p], lr=1.0, backend=instance),
        new_scaler(sf.GradScaler, device),
    )
    for position in sorted({0, size // 2, size - 1}):
        p.grad = torch.full_like(p, 3e38)  # whose square is no float32
        p.grad[position] = value
        scaler.step(ours)
        scaler.update()
        assert bool(ours.last_step.skipped)
    assert torch.equal(p, torch.ones_like(p))
    p.grad = torch.full_like(p, 3e38)
    scaler.step(ours)
    assert not bool(ours.last_step.skipped)
    assert bool((p < 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("fused", [None, True])
def test_other_dtypes(dtype: torch.dtype, fused: bool | None) -> None:
    p = nn.Parameter(torch.ones(5, dtype=dtype))
    ours, scaler = (
        sf.StackelbergSGD([p], lr=1.0, fused=fused, master=None),
        new_scaler(sf.GradScaler),
    )
    p.grad = torch.full_like(p, SCALE)
    scaler.step(ours)
    scaler.update()
    assert p.tolist() == [0.0] * 5
    p.grad = torch.full_like(p, torch.nan)
    scaler.step(ours)
    assert p.tolist() == [0.0] * 5
    if dtype is torch.float64:
        scaler.update()
        p.grad = torch.full_like(p, 1e200)  # whose square is no float64
        scaler.step(ours)
        assert not bool(ours.last_step.skipped)


@pytest.mark.parametrize("grads", ["latest", "mean"])
@by_backend
def test_an_infinity_in_a_gradient_that_waits(backend: str, grads: str) -> None:
    """torch's scaler skips the step of all groups, and so does this one; nobody waits a step less by it."""
    sides = []
    for cls in SCALERS:
        turns = {"update_every": {"body": 2}, "update_every_grads": grads}
        optimizer = optimizer_by(ADAM, backend, fused=True, max_grad_norm=1.0, **turns)
        scaler = new_scaler(cls, all_params(optimizer)[0].device.type)
        for number in range(1, 7):
            set_gradients(optimizer.param_groups, number)
            if number in (2, 5):
                next(p for p in all_params(optimizer) if p.numel()).grad[0] = torch.inf
            scaler.step(optimizer)
            assert bool(optimizer.last_step.skipped) == (number in (2, 5))
            scaler.update()
        sides.append(optimizer)
    assert_same_optimizers(*sides)


def test_the_norm_of_a_step_counts_no_gradient_that_waits() -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    groups = [{"params": [p], "update_every": 2}, {"params": [q], "role": "head", "lr": 1.0}]
    ours, scaler = sf.StackelbergSGD(groups, lr=1.0, max_grad_norm=100.0), new_scaler(sf.GradScaler)
    p.grad, q.grad = torch.full_like(p, 7.0 * SCALE), torch.tensor([3.0, 4.0]) * SCALE
    scaler.step(ours)
    found = {of: float(norm) for of, norm in ours.last_step.grad_norm.items()}
    assert found == {"head": 5.0, "total": 5.0}


@by_fused
@by_backend
def test_gradients_are_neither_written_nor_read_twice(backend: str, fused: bool | None) -> None:
    ours = optimizer_by(ADAM, backend, fused=fused, max_grad_norm=1.0)
    scaler = new_scaler(sf.GradScaler, all_params(ours)[0].device.type)
    set_gradients(ours.param_groups, 1)
    before = [(p.grad.clone(), p.grad._version) for p in all_params(ours)]
    scaler.step(ours)
    for p, (value, version) in zip(all_params(ours), before, strict=True):
        assert_same_bits(p.grad, value)
        assert p.grad._version == version
    assert ours.launches == (0 if backend == "reference" else 2)


@by_fused
@by_backend
def test_without_a_limit_no_norms_are_reported(backend: str, fused: bool | None) -> None:
    ours = optimizer_by(ADAM, backend, fused=fused)
    train_scaled(sf.GradScaler, ours)
    report = ours.last_step
    assert report.grad_norm is None
    assert report.clip_factor is None
    assert not bool(report.skipped)


@pytest.mark.filterwarnings("ignore:.*not in the flat buffer:UserWarning")
@pytest.mark.parametrize("grads", ["gather", "flat"])
@by_backend
def test_a_skipped_step_moves_nothing_and_clears(backend: str, grads: str) -> None:
    ours = optimizer_by(ADAM, backend, grads=grads, ema_decay=0.9, max_grad_norm=1.0)
    scaler = new_scaler(sf.GradScaler, all_params(ours)[0].device.type)
    for number in (1, 2):
        set_gradients(ours.param_groups, number)
        scaler.step(ours)
        scaler.update()
    params = [p for p in all_params(ours) if p.numel()]
    set_gradients(ours.param_groups, 3)
    params[-1].grad[-1] = torch.nan
    before = Snapshot(ours)
    launches = ours.launches
    scaler.step(ours, zero_grad=True)
    ours.launches = launches
    assert bool(ours.last_step.skipped)
    left = [p.grad for p in params]
    assert all(grad is None or not grad.any() for grad in left)
    assert all((grad is None) == (grads == "gather") for grad in left)
    set_gradients(ours.param_groups, 3)
    params[-1].grad[-1] = torch.nan
    before.assert_unchanged(versions=False)


def test_several_tables_agree() -> None:
    dtypes = (torch.float32, torch.float64)
    params = [nn.Parameter(normal(5, i, dtype)) for i, dtype in enumerate(dtypes)]
    with pytest.warns(UserWarning, match="reference"):
        ours = sf.StackelbergSGD(params, lr=1.0, backend="auto", max_grad_norm=1e9)
    values, scaler = [p.detach().clone() for p in params], new_scaler(sf.GradScaler)
    for bad in (0, 1):
        for p in params:
            p.grad = torch.full_like(p, SCALE)
        params[bad].grad[2] = torch.inf
        scaler.step(ours)
        scaler.update(SCALE)
        for p, value in zip(params, values, strict=True):
            assert torch.equal(p, value)
    for p in params:
        p.grad = torch.full_like(p, SCALE)
    scaler.step(ours)
    for p, value in zip(params, values, strict=True):
        torch.testing.assert_close(p.detach(), value - 1.0)
