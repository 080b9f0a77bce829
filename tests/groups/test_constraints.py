"""Constraint sets: every update is projected, on every backend; the stored value is in the set, and stays as it is."""

from __future__ import annotations

import io
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from backends import by_backend, chosen, optimizer_by
from cases import (
    MIXED,
    Options,
    gradient,
    kernel_options,
    normal,
)
from checks import all_params, assert_same_bits, assert_same_optimizers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting
from stackelberg_fused.groups.constraints import as_constraint, rounded

BOX = sf.Box(-0.3, 0.7)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _fill(optimizer: Any, number: int) -> None:
    for k, p in enumerate(all_params(optimizer)):
        p.grad = gradient(tuple(p.shape), 7919 * number + k).clone().to(p.device)


@pytest.mark.parametrize("more", [{}, {"zero_grad": True}], ids=["plain", "clearing"])
@pytest.mark.parametrize("options", [*kernel_options(), MIXED], ids=str)
@by_backend
def test_a_box_is_a_clamp_after_the_update(
    backend: str, options: Options, more: dict[str, Any]
) -> None:
    """To the bit: of an optimizer without it whose parameters are clamped by hand."""
    if is_interpreting() and not options.mixed:
        pytest.skip("left out: the interpreter's time")
    grads = "flat" if more else "gather"
    ours = optimizer_by(options, backend, constraint={"body": BOX}, grads=grads)
    by_hand = optimizer_by(options, backend)
    for number in range(4):
        for optimizer in (ours, by_hand):
            _fill(optimizer, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gradients not in the flat buffer
            ours.step(**more)
        by_hand.step()
        for group in by_hand.param_groups:
            for p in group["params"]:
                if group["role"] == "body":
                    # float32's -0.3 is below the box, its 0.7 is in it
                    p.data.clamp_(np.nextafter(np.float32(-0.3), np.float32(0)).item(), 0.7)
    body = [p for g in ours.param_groups if g["role"] == "body" for p in g["params"]]
    head = [p for g in ours.param_groups if g["role"] == "head" for p in g["params"]]
    assert any(bool((p == p.clamp(-0.29, 0.69)).logical_not().any()) for p in body if p.numel())
    assert any(bool((p.abs() > 0.7).any()) for p in head if p.numel())
    assert_same_optimizers(ours, by_hand)
    assert ours.launches == (0 if backend == "reference" else 4)


@by_backend
def test_averages_are_of_projected_weights_and_nan_stays(backend: str) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.tensor([0.0, 0.0, -0.0, math.nan], device=device))
    ours = sf.StackelbergSGD(
        [p], lr=1.0, backend=instance, constraint=sf.NonNegative(), ema_decay=0.5
    )
    p.grad = torch.tensor([1.0, -1.0, 0.0, 1.0], device=device)
    ours.step()
    assert p.tolist()[:3] == [0.0, 1.0, 0.0]
    assert ours.state[p]["ema"].tolist()[:3] == [0.0, 0.5, 0.0]
    assert math.isnan(p[3])
    p.grad = torch.tensor([0.0, math.inf, 0.0, 0.0], device=device)
    ours.step()
    assert p.tolist()[:2] == [0.0, 0.0]


@by_backend
def test_a_group_that_waits_and_a_skipped_step_are_not_projected(backend: str) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.full((5,), 3.0, device=device))
    ours = sf.StackelbergSGD([p], lr=1.0, backend=instance, constraint=sf.Box(0, 1), update_every=2)
    p.grad = torch.zeros(5, device=device)
    ours.step()
    assert p.tolist() == [3.0] * 5
    ours.found_inf = torch.ones((), device=device)
    ours.step()
    del ours.found_inf
    assert p.tolist() == [3.0] * 5
    ours.step()
    assert p.tolist() == [1.0] * 5


@by_backend
def test_changed_between_steps(backend: str) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.zeros(5, device=device))
    ours = sf.StackelbergSGD([p], lr=1.0, backend=instance)
    seen = []
    for constraint in (None, sf.Box(-2.5, 9), ("box", -1.5, 9.0), None):
        ours.param_groups[0]["constraint"] = constraint
        p.grad = torch.ones(5, device=device)
        ours.step()
        seen.append(float(p[0]))
    assert seen == [-1.0, -2.0, -1.5, -2.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bounds_are_in_the_set_in_their_own_dtype(dtype: torch.dtype) -> None:
    low, high = 0.1, 0.7
    params = [nn.Parameter(torch.tensor([-3.0, 0.3, 3.0], dtype=dtype)) for _ in range(2)]
    ours = sf.StackelbergSGD(params, lr=1.0, backend="reference", constraint=sf.Box(low, high))
    for _ in range(2):
        for p in params:
            p.grad = torch.zeros(3, dtype=dtype)
        ours.step()
        kept = [p.detach().clone() for p in params]
        for p in params:
            assert bool((p.double() >= low).all())
            assert bool((p.double() <= high).all())
            torch.testing.assert_close(p[[0, 2]].detach(), torch.tensor([low, high], dtype=dtype))
    for p, old in zip(params, kept, strict=True):
        assert_same_bits(p.detach(), old)


@given(st.floats(allow_nan=False), st.sampled_from(DTYPES), st.booleans())
def test_rounded(value: float, dtype: torch.dtype, up: bool) -> None:
    found = rounded(value, dtype, up)
    assert found >= value if up else found <= value
    assert float(torch.tensor(found, dtype=torch.float64).to(dtype)) == found
    near = float(torch.tensor(value, dtype=torch.float64).to(dtype))
    if near != found:  # the nearest number is on the other side, and the one found the next to it
        middle = torch.tensor((near + found) / 2, dtype=torch.float64)
        if math.isfinite(near):
            assert float(middle.to(dtype)) in (near, found)


def test_state_dicts_hold_plain_values() -> None:
    p = nn.Parameter(torch.ones(3))
    groups = [
        {"params": [p], "constraint": sf.Box(0.0, 2.0)},
        {"params": [nn.Parameter(torch.ones(3))], "role": "head"},
    ]
    ours = sf.StackelbergAdamW(groups, constraint={"head": sf.NonNegative()})
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert [g["constraint"] for g in loaded["param_groups"]] == [
        ("box", 0.0, 2.0),
        ("box", 0.0, math.inf),
    ]
    again = sf.StackelbergAdamW([{"params": [p]}, groups[1]])
    again.load_state_dict(loaded)
    assert [g["constraint"] for g in again.param_groups] == [sf.Box(0.0, 2.0), sf.NonNegative()]
    torchs = torch.optim.AdamW([p]).state_dict()
    torchs["param_groups"].append({**torchs["param_groups"][0], "params": [1]})
    again.load_state_dict(torchs)
    assert again.param_groups[0]["constraint"] == sf.Box(0.0, 2.0)


def test_a_constrained_convex_problem_against_scipy() -> None:
    """min 1/2 x'Ax - b'x over a box, by gradient steps of two players."""
    optimize = pytest.importorskip("scipy.optimize")
    factor = normal((6, 6), 1).double()
    a, b = factor @ factor.t() + torch.eye(6), 3 * normal(6, 2).double()
    exact = optimize.minimize(
        lambda x: (0.5 * x @ a.numpy() @ x - b.numpy() @ x, a.numpy() @ x - b.numpy()),
        np.zeros(6),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, 0.4)] * 6,
        options={"gtol": 1e-12, "ftol": 1e-16},
    )
    body, head = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    ours = sf.StackelbergSGD(
        [{"params": [body]}, {"params": [head], "role": "head"}],
        lr=0.02,
        head_lr_ratio=2.0,
        constraint=sf.Box(0, 0.4),
    )
    for _ in range(1000):
        x = torch.cat([body, head]).double()
        (0.5 * x @ a @ x - b @ x).backward()
        ours.step()
        ours.zero_grad()
    found = torch.cat([body, head]).detach().numpy()
    np.testing.assert_allclose(found, exact.x, atol=1e-5)
    assert ((found > 0) & (found < 0.4)).any()
    assert ((found == 0) | (found == np.nextafter(np.float32(0.4), np.float32(0)))).any()


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: sf.Box(1, 0), ValueError, "nothing is between low=1 and high=0"),
    (lambda: sf.Box(math.inf), ValueError, "nothing is between"),
    (lambda: sf.Box(math.nan), ValueError, "low is NaN"),
    (lambda: sf.Box("0", 1), TypeError, "low must be a number"),
    (lambda: as_constraint("box"), TypeError, "must be None or one of Box"),
    (lambda: _of(3), TypeError, r"param group 0 \(body\): constraint must be None"),
    (lambda: _of(sf.Box(0.1, 0.1)), ValueError, r"group 0 \(body\): Box\(.*float32 number is in"),
    (lambda: _of({"tail": BOX}), ValueError, "unknown role 'tail'"),
    (lambda: _of(BOX, differentiable=True), ValueError, "does not go with a constraint"),
]


def _of(constraint: Any, **more: Any) -> Any:
    return sf.StackelbergSGD([nn.Parameter(torch.zeros(3))], constraint=constraint, **more)


@pytest.mark.parametrize("make, error, match", BAD)
def test_what_is_refused(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_a_set_that_nobody_projects_onto_is_refused() -> None:
    class Mine(sf.Box):
        pass

    with pytest.raises(TypeError, match="must be None or one of Box"):
        _of(Mine(0, 1))
