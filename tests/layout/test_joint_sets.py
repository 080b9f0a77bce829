"""Sets that many elements share: projected by one launch more, on every backend to the same set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from backends import AS_CPU, by_backend, chosen
from cases import (
    MIXED,
    Options,
    gradient,
    groups_of,
    kernel_options,
    normal,
    sizes_for,
)
from checks import all_params, assert_same_bits, assert_same_optimizers
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting
from stackelberg_fused.numerics.projection import SLACK, project_simplex

SETS = [sf.L2Ball(2.5), sf.Simplex(1.5)]
by_set = pytest.mark.parametrize("constraint", SETS, ids=lambda s: s.kind)
EPS = 2.0**-23


def _sgd(params: Any, backend: str, constraint: Any, **more: Any) -> Any:
    instance, device = chosen(backend)
    params = [nn.Parameter(p.to(device)) for p in params]
    return params, sf.StackelbergSGD(
        params, **{"lr": 1.0, "backend": instance, "constraint": constraint, **more}
    )


def _step(optimizer: Any, grads: list[Any], **how: Any) -> None:
    for p, grad in zip(all_params(optimizer), grads, strict=True):
        p.grad = None if grad is None else grad.to(p.device)
    optimizer.step(**how)


def _norm(params: list[nn.Parameter]) -> float:
    return float(torch.cat([p.detach().double().cpu().reshape(-1) for p in params]).norm())


def _assert_on_simplex(p: torch.Tensor, total: float) -> None:
    rows = p.detach().double().cpu().reshape(-1, p.shape[-1] if p.dim() else 1)
    assert bool((rows >= 0).all())
    sums = rows.sum(-1)
    assert bool((sums <= total * (1 + SLACK)).all())
    assert bool((sums >= total * (1 - 2 * EPS)).all())


@pytest.mark.parametrize(
    "more",
    [{}, {"ema_decay": 0.9}, {"counted": True, "max_grad_norm": 1.0}],
    ids=["plain", "averaged", "counted-clipped"],
)
@pytest.mark.parametrize("options", [*kernel_options()[::4], MIXED], ids=str)
@by_set
@by_backend
def test_near_the_reference(
    backend: str, constraint: Any, options: Options, more: dict[str, Any]
) -> None:
    if is_interpreting() and not options.mixed:
        pytest.skip("left out: the interpreter's time")
    instance, device = chosen(backend)
    more = dict(more)
    counted = {"capturable": True} if more.pop("counted", False) and options.rule != "sgd" else {}
    more["constraint"] = {"body": constraint}
    both = [
        options.ours(
            groups_of(sizes_for(5), device, mixed=options.mixed),
            backend=instance,
            **more,
            **counted,
        ),
        options.ours(groups_of(sizes_for(5), mixed=options.mixed), backend="reference", **more),
    ]
    for number in range(3):
        for optimizer in both:
            _step(
                optimizer,
                [
                    gradient(tuple(p.shape), 7919 * number + k).clone()
                    for k, p in enumerate(all_params(optimizer))
                ],
            )
    ours, reference = both
    for p, q in zip(all_params(ours), all_params(reference), strict=True):
        torch.testing.assert_close(p.detach().cpu(), q.detach(), rtol=2e-5, atol=2e-6)
        if "ema_decay" in more:
            emas = (o.state[x]["ema"].cpu() for o, x in ((ours, p), (reference, q)))
            torch.testing.assert_close(*emas, rtol=2e-5, atol=2e-6)
    for group in ours.param_groups:
        if group["role"] == "head":
            continue
        if isinstance(constraint, sf.L2Ball):
            assert _norm(group["params"]) <= constraint.radius
        else:
            for p in group["params"]:
                if p.numel():
                    _assert_on_simplex(p, constraint.total)
    expected = 0 if backend == "reference" else 3 * (3 if "max_grad_norm" in more else 2)
    assert ours.launches == expected


@pytest.mark.parametrize("backend", AS_CPU)
@by_set
def test_native_backends_agree_to_the_bit(backend: str, constraint: Any) -> None:
    instance, _ = chosen(backend)
    both = []
    for each in (instance, "cpu"):
        groups = groups_of(sizes_for(5), "cpu", mixed=True)
        both.append(
            MIXED.ours(
                groups,
                backend=each,
                constraint=constraint,
                ema_decay=0.9,
                update_every={"body": 2},
                update_every_grads="mean",
                max_grad_norm=1.0,
            )
        )
    for number in range(5):
        for optimizer in both:
            count = len(all_params(optimizer))
            grads = [
                gradient(tuple(p.shape), 31 * number + k).clone()
                for k, p in enumerate(all_params(optimizer))
            ]
            _step(
                optimizer,
                [None if (number + k) % 3 == 0 else g for k, g in enumerate(grads)][:count],
            )
    assert_same_optimizers(*both)


@by_set
@by_backend
def test_projecting_again_changes_no_bit(backend: str, constraint: Any) -> None:
    values = [3 * normal((5, 7), 1), normal(5000, 2), normal((), 3), normal((2, 300), 4) * 100]
    params, ours = _sgd(values, backend, constraint)
    zeros = [torch.zeros_like(p) for p in values]
    _step(ours, zeros)
    once = [p.detach().clone() for p in params]
    for _ in range(2):
        _step(ours, zeros)
        for p, old in zip(params, once, strict=True):
            assert_same_bits(p.detach(), old)


@by_backend
def test_a_ball_scales_all_of_its_group(backend: str) -> None:
    """Also a parameter without a gradient, and one whose memory has gaps; not another group's."""
    instance, device = chosen(backend)
    gapped = torch.full((3, 8), 2.0, device=device)
    a = nn.Parameter(torch.full((4097,), 0.5, device=device))
    b, c = nn.Parameter(gapped[:, ::2]), nn.Parameter(torch.full((5,), 9.0, device=device))
    ours = sf.StackelbergSGD(
        [{"params": [a, b], "constraint": sf.L2Ball(1.0)}, {"params": [c]}],
        lr=0.0,
        backend=instance,
    )
    before, version = _norm([a, b]), b._version
    a.grad = torch.zeros_like(a)
    ours.step()
    assert 1 - 1e-6 < _norm([a, b]) <= 1.0
    torch.testing.assert_close(b.detach().cpu(), torch.full((3, 4), 2.0 / before))
    assert b._version > version
    assert gapped[:, 1::2].eq(2.0).all()
    assert c.eq(9.0).all()
    assert ours.last_step.launches == (0 if backend == "reference" else 2)


@by_set
@by_backend
def test_what_does_not_move_is_not_projected(backend: str, constraint: Any) -> None:
    params, ours = _sgd([torch.full((5,), 3.0)], backend, constraint, update_every=2)
    zeros = [torch.zeros(5)]
    for grads, found_inf, moves in (
        ([None], 0.0, False),
        (zeros, 0.0, False),  # waits
        (zeros, 1.0, False),  # skipped
        (zeros, 0.0, True),
    ):
        if found_inf:
            ours.found_inf = torch.full((), found_inf, device=params[0].device)
        _step(ours, grads)
        if found_inf:
            del ours.found_inf
        assert (params[0].tolist() != [3.0] * 5) == moves


@by_backend
def test_by_role_and_with_a_scaler_on_the_device(backend: str) -> None:
    instance, device = chosen(backend)
    body, head = (nn.Parameter(torch.full((6,), 2.0, device=device)) for _ in range(2))
    ours = sf.StackelbergSGD(
        [{"params": [body]}, {"params": [head], "role": "head"}],
        lr=0.5,
        backend=instance,
        constraint={"body": sf.L2Ball(1.0), "head": sf.Simplex()},
    )
    for p in (body, head):
        p.grad = torch.zeros_like(p)
    ours.step(role="head")
    assert body.tolist() == [2.0] * 6
    torch.testing.assert_close(head.detach().cpu(), torch.full((6,), 1 / 6))
    ours.grad_scale = torch.full((), 8.0, device=device)
    ours.found_inf = torch.zeros((), device=device)
    ours.step()
    del ours.grad_scale, ours.found_inf
    assert 1 - 1e-6 < _norm([body]) <= 1


@by_backend
def test_averages_are_of_projected_weights(backend: str) -> None:
    for constraint, expected in ((sf.L2Ball(1.0), 0.5), (sf.Simplex(), 0.25)):
        (p,), ours = _sgd([torch.zeros(4)], backend, constraint, ema_decay=0.5)
        _step(ours, [torch.full((4,), -3.0)])
        torch.testing.assert_close(p.detach().cpu(), torch.full((4,), expected))
        torch.testing.assert_close(ours.state[p]["ema"].cpu(), torch.full((4,), expected / 2))


@by_backend
def test_rows_are_along_the_last_dimension_whatever_the_strides(backend: str) -> None:
    values = normal((3, 4, 5), 1)
    orders = ((0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1))
    laid_out = [values.permute(o).contiguous().permute(np.argsort(o).tolist()) for o in orders]
    assert all(torch.equal(x, values) for x in laid_out)
    params, ours = _sgd(laid_out, backend, sf.Simplex(2.0))
    _step(ours, [torch.zeros_like(p) for p in laid_out])
    _assert_on_simplex(params[0], 2.0)
    expected = project_simplex(values, 2.0, 2 * (1 - 2 * EPS), 2 * (1 + SLACK))
    for p in params:
        assert_same_bits(p.detach().contiguous(), params[0].detach().contiguous())
        torch.testing.assert_close(p.detach().cpu(), expected)


@by_backend
def test_extreme_values(backend: str) -> None:
    rows = torch.tensor(
        [
            [1e30, 1e30, 0.0],
            [-1e30, -2e30, -3e30],
            [1e-40, 0.0, -1e-40],
            [0.25, 0.75, 0.0],
            [math.nan, 5.0, 5.0],
            [math.inf, 5.0, 5.0],
        ]
    )
    (p,), ours = _sgd([rows], backend, sf.Simplex())
    _step(ours, [torch.zeros_like(rows)])
    found = p.detach().cpu()
    for i, row in enumerate(([0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3] * 3, [0.25, 0.75, 0.0])):
        torch.testing.assert_close(found[i], torch.tensor(row), rtol=3 * EPS, atol=0.0)
    assert_same_bits(found[3:], rows[3:])  # in it to the bit, and not finite
    for values, is_kept in (
        ([1e30, -1e30], False),
        ([math.nan, 5.0], True),
        ([math.inf, 5.0], True),
    ):
        (p,), ours = _sgd([torch.tensor(values)], backend, sf.L2Ball(1.0))
        _step(ours, [torch.zeros(2)])
        assert (str(p.tolist()) == str(values)) == is_kept
        assert is_kept or _norm([p]) <= 1
    (p,), ours = _sgd([torch.ones(3)], backend, sf.L2Ball(0.0))
    _step(ours, [torch.ones(3) * -1])
    assert p.tolist() == [0.0] * 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@by_set
def test_in_other_dtypes(constraint: Any, dtype: torch.dtype) -> None:
    p = nn.Parameter((3 * normal((4, 9), 1)).to(dtype))
    ours = sf.StackelbergSGD([p], lr=0.0, backend="reference", constraint=constraint)
    kept = None
    for _ in range(3):
        p.grad = torch.zeros_like(p)
        ours.step()
        if kept is not None:
            assert_same_bits(p.detach(), kept)
        kept = p.detach().clone()
    if isinstance(constraint, sf.L2Ball):
        assert _norm([p]) <= constraint.radius
    else:
        sums, eps = p.detach().double().sum(-1), max(2 * torch.finfo(dtype).eps, SLACK)
        assert bool(
            ((p >= 0).all() & (sums <= 1.5 * (1 + SLACK)) & (sums >= 1.5 * (1 - eps))).all()
        )


@by_backend
def test_changed_between_steps_and_by_a_state_dict(backend: str) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.zeros(4, device=device))
    ours = sf.StackelbergSGD([p], lr=1.0, backend=instance, ema_decay=0.5)
    seen = []
    for constraint in (None, sf.L2Ball(1), ("simplex", 2.0), sf.Box(-1, 1.5), None):
        ours.param_groups[0]["constraint"] = constraint
        p.grad = torch.full((4,), -2.0, device=device)
        ours.step()
        seen.append(round(float(p.detach()[0]), 5))
    assert seen == [2.0, 0.5, 0.5, 1.5, 3.5]
    # of 2, 0.5, 0.5, 1.5 and 3.5, from 0 on
    torch.testing.assert_close(ours.state[p]["ema"].cpu(), torch.full((4,), 2.28125))
    ours.param_groups[0]["constraint"] = sf.L2Ball(3)
    again = sf.StackelbergSGD([nn.Parameter(torch.zeros(4, device=device))], backend=instance)
    again.load_state_dict(ours.state_dict())
    assert again.param_groups[0]["constraint"] == sf.L2Ball(3.0)


@by_backend
def test_members_without_elements(backend: str) -> None:
    """They move nothing, and there is nothing of them to launch for."""
    instance, device = chosen(backend)
    empty, full, free = (
        nn.Parameter(torch.full(s, 5.0, device=device)) for s in ((0, 3), (4,), (5,))
    )
    ours = sf.StackelbergSGD(
        [{"params": [empty, full], "constraint": sf.L2Ball(1)}, {"params": [free]}],
        lr=1.0,
        backend=instance,
    )
    for constraint in (sf.L2Ball(1), sf.Simplex()):
        ours.param_groups[0]["constraint"] = constraint
        empty.grad, free.grad = torch.zeros_like(empty), torch.ones_like(free)
        version = full._version
        ours.step()
        assert full.tolist() == [5.0] * 4
        assert full._version == version
        assert ours.last_step.launches == (0 if backend == "reference" else 1)
    assert free.tolist() == [3.0] * 5
