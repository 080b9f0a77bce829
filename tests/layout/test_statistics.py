"""Clipping in the step: factors of the same bits on every backend, and a step equal to that of clipped gradients."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from cases import (
    MIXED,
    Options,
    gradient,
    groups_of,
    kernel_options,
    normal,
    set_gradients,
    sizes_for,
    step,
)
from checks import all_params, assert_same_bits, assert_same_optimizers
from tolerances import SEVERAL_STEPS
from torch import nn
from torch.nn.utils import clip_grad_norm_

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting

LIMITS = {
    "number": 1.0,
    "players": {"body": 0.5, "head": 2.0},
    "head alone": {"head": 1e-3},
    "nothing to clip": {"body": 1e9, "head": 1e9},
    "measured only": math.inf,
}
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
OPTIONS = [*kernel_options(), MIXED]
by_limits = pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)


def _optimizer(
    options: Options, backend: str, num_groups: int = 7, large: bool = False, **more: Any
) -> Any:
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(num_groups, large), device, mixed=options.mixed)
    return options.ours(groups, backend=instance, **more)


def _measured(optimizer: Any) -> list[torch.Tensor]:
    last = optimizer.last_step
    return [t.cpu() for t in (*last.grad_norm.values(), *last.clip_factor.values())]


@by_limits
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@by_backend
def test_a_clipped_step_is_the_step_of_clipped_gradients(
    backend: str, options: Options, limits: Any
) -> None:
    if is_interpreting() and (limits != 1.0 or options.rule == "adam"):
        pytest.skip("left out: the interpreter's time; the factors are compared below")
    clipped = _optimizer(options, backend, max_grad_norm=limits)
    by_hand = _optimizer(options, backend)
    for number in range(2):
        set_gradients(clipped.param_groups, number, 3 if number else 0)
        clipped.step()
        set_gradients(by_hand.param_groups, number, 3 if number else 0)
        factors = clipped.last_step.clip_factor
        for group in by_hand.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(factors[group["role"]])
        by_hand.step()
    assert_same_optimizers(clipped, by_hand)
    assert clipped.launches == (0 if backend == "reference" else 4)


# of one group, which is a body
@pytest.mark.filterwarnings("ignore:max_grad_norm names the role 'head'")
@pytest.mark.parametrize("num_groups, large", [(1, True), (2, True), (7, False), (465, False)])
@by_limits
@by_backend
def test_same_bits_on_every_backend(
    backend: str, limits: Any, num_groups: int, large: bool
) -> None:
    if is_interpreting() and num_groups != 7 and limits != 1.0:
        pytest.skip("left out: the interpreter's time")
    ours = _optimizer(ADAM, backend, num_groups, large, max_grad_norm=limits)
    expected = _optimizer(ADAM, "cpu", num_groups, large, max_grad_norm=limits)
    for number in range(2):
        for optimizer in (ours, expected):
            set_gradients(optimizer.param_groups, number, 3 if number else 0)
            optimizer.step()
        for actual, wanted in zip(_measured(ours), _measured(expected), strict=True):
            assert_same_bits(actual, wanted)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_same_bits_with_any_number_of_threads(threads: int) -> None:
    ours = _optimizer(ADAM, "cpu", 2, True, max_grad_norm=1.0)
    step(ours)
    expected = _measured(ours)
    torch.set_num_threads(threads)
    step(ours)
    for actual, wanted in zip(_measured(ours), expected, strict=True):
        assert_same_bits(actual, wanted)


def _clip_by_torch(optimizer: Any, limits: Any) -> None:
    if not isinstance(limits, dict):
        clip_grad_norm_(all_params(optimizer), limits)
        return
    for role, limit in limits.items():
        groups = [g for g in optimizer.param_groups if g.get("role") == role]
        clip_grad_norm_([p for g in groups for p in g["params"]], limit)


@by_limits
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_as_torch_clips(dtype: torch.dtype, limits: Any) -> None:
    groups = [groups_of(sizes_for(7), dtype=dtype) for _ in range(2)]
    backend = "cpu" if dtype is torch.float32 else "reference"
    ours = sf.StackelbergAdamW(groups[0], backend=backend, max_grad_norm=limits)
    torchs = torch.optim.AdamW(groups[1], foreach=False)
    for number in range(5):
        for optimizer in (ours, torchs):
            set_gradients(optimizer.param_groups, number)
        _clip_by_torch(torchs, limits)
        for optimizer in (ours, torchs):
            optimizer.step()
    for p, q in zip(all_params(ours), all_params(torchs), strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)


@by_backend
def test_a_role_alone_is_clipped_by_its_own_gradients(backend: str) -> None:
    ours = _optimizer(ADAM, backend, max_grad_norm=1.0)
    alone = _optimizer(ADAM, backend, max_grad_norm={"head": 1.0})
    for optimizer in (ours, alone):
        set_gradients(optimizer.param_groups, 0)
        for group in optimizer.param_groups:
            if group["role"] == "body":
                for p in group["params"]:
                    p.grad.fill_(torch.inf)
        optimizer.step(role="head")
    assert list(ours.last_step.grad_norm) == ["head", "total"]
    assert list(ours.last_step.clip_factor) == ["head"]
    assert_same_bits(ours.last_step.grad_norm["total"], ours.last_step.grad_norm["head"])
    assert_same_bits(ours.last_step.clip_factor["head"], alone.last_step.clip_factor["head"])
    assert_same_optimizers(ours, alone)


@by_backend
def test_a_nan_in_one_role(backend: str) -> None:
    joint = _optimizer(ADAM, backend, max_grad_norm=1.0)
    apart = _optimizer(ADAM, backend, max_grad_norm={"body": 1.0, "head": 1.0})
    for optimizer in (joint, apart):
        set_gradients(optimizer.param_groups, 0)
        head = next(g for g in optimizer.param_groups if g["role"] == "head")
        next(p for p in head["params"] if p.numel()).grad[0] = torch.nan
        optimizer.step()
    # as torch: everything that is clipped together becomes NaN
    assert all(p.isnan().all() for p in all_params(joint))
    for group in apart.param_groups:
        assert all(
            p.isnan().all() == (group["role"] == "head") for p in group["params"] if p.numel()
        )


@by_backend
@pytest.mark.parametrize("limits", [1.0, {"body": 1.0, "head": 1.0}])
def test_nothing_to_measure(backend: str, limits: Any) -> None:
    ours = _optimizer(ADAM, backend, max_grad_norm=limits)
    before = [p.detach().clone() for p in all_params(ours)]
    ours.step()
    assert [float(t) for t in _measured(ours)] == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert (ours.launches, ours.last_step.launches) == (0, 0)
    set_gradients([g for g in ours.param_groups if g["role"] == "head"], 0)
    ours.step()
    norms = {role: float(norm) for role, norm in ours.last_step.grad_norm.items()}
    assert norms["body"] == 0.0 < norms["head"] == norms["total"]
    moved = [not torch.equal(p, q) for p, q in zip(all_params(ours), before, strict=True)]
    roles = [g["role"] for g in ours.param_groups for _ in g["params"]]
    numel = [p.numel() for p in all_params(ours)]
    assert moved == [r == "head" and n > 0 for r, n in zip(roles, numel, strict=True)]


@by_backend
def test_large_gradients_do_not_overflow(backend: str) -> None:
    instance, device = chosen(backend)
    p = nn.Parameter(torch.zeros(10_000, device=device))
    ours = sf.StackelbergSGD([p], lr=1.0, backend=instance, max_grad_norm=1.0)
    p.grad = torch.full_like(p, 1e30)
    ours.step()
    exact = 100 * float(torch.tensor(1e30))
    assert float(ours.last_step.grad_norm["total"]) == pytest.approx(exact, rel=1e-15)
    torch.testing.assert_close(p.detach().cpu(), torch.full((10_000,), -0.01))


@by_backend
def test_gradients_at_every_offset(backend: str) -> None:
    instance, device = chosen(backend)
    numel = 9000
    values = gradient(numel, 1).to(device)
    seen = []
    for shift in range(5):
        p = nn.Parameter(normal(numel, 0).to(device))
        ours = sf.StackelbergSGD([p], lr=1.0, backend=instance, max_grad_norm=1.0)
        p.grad = torch.zeros(numel + 8, device=device)[shift : shift + numel].copy_(values)
        ours.step()
        measured = torch.stack([t.double() for t in _measured(ours)])
        seen.append(torch.cat([p.detach().cpu().double(), measured]))
    assert all(torch.equal(s, seen[0]) for s in seen)


def test_layouts_are_measured_in_the_order_of_memory() -> None:
    """Channels-last and gapped parameters: the same bits, whichever backend finds the gradient in whatever layout."""
    seen = []
    for backend in ("reference", "cpu"):
        params = [
            nn.Parameter(normal((4, 3, 17, 17), 1).to(memory_format=torch.channels_last)),
            nn.Parameter(normal((70, 70), 2).t()),
            nn.Parameter(normal((70, 140), 3)[:, ::2]),
        ]
        ours = sf.StackelbergAdamW(params, backend=backend, max_grad_norm=1.0)
        for i, p in enumerate(params):
            p.grad = gradient(tuple(p.shape), i).clone()
        ours.step()
        seen.append(_measured(ours))
    for a, b in zip(*seen, strict=True):
        assert_same_bits(a, b)


def test_tables_of_several_dtypes_are_clipped_together() -> None:
    """On the host float32 runs in `cpu` and float64 in `reference`: one norm, one factor."""
    make = [
        nn.Parameter(normal(50, i, dtype)) for i, dtype in enumerate([torch.float32, torch.float64])
    ]
    params = [[nn.Parameter(p.detach().clone()) for p in make] for _ in range(2)]
    ours = sf.StackelbergSGD(params[0], lr=1.0, max_grad_norm=0.5)
    torchs = torch.optim.SGD(params[1], lr=1.0, foreach=False)
    for side in params:
        for i, p in enumerate(side):
            p.grad = gradient(50, i, p.dtype).clone()
    clip_grad_norm_(params[1], 0.5, foreach=False)
    ours.step()
    torchs.step()
    for p, q in zip(*params, strict=True):
        torch.testing.assert_close(p, q, **SEVERAL_STEPS)
    total = torch.cat([gradient(50, i, p.dtype).double() for i, p in enumerate(make)]).norm()
    assert float(ours.last_step.grad_norm["total"]) == pytest.approx(float(total), rel=1e-14)


def test_gradients_stay_as_they_are() -> None:
    ours = _optimizer(ADAM, "cpu", max_grad_norm=1e-3)
    set_gradients(ours.param_groups, 0)
    before = [p.grad.clone() for p in all_params(ours)]
    ours.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(all_params(ours), before, strict=True))


def test_the_limit_may_be_set_between_steps() -> None:
    ours, never = _optimizer(ADAM, "cpu"), _optimizer(ADAM, "cpu")
    step(ours, never)
    assert ours.last_step.grad_norm is None
    assert ours.last_step.launches == 1
    ours.max_grad_norm = {"body": math.inf}
    step(ours, never, seed=1)
    assert ours.last_step.launches == 2
    assert_same_optimizers(ours, never)
    ours.max_grad_norm = None
    step(ours, seed=2)
    assert ours.last_step.clip_factor is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_clips_too(copied: Any) -> None:
    ours = _optimizer(ADAM, "cpu", max_grad_norm={"head": 0.5})
    step(ours)
    again = copied(ours)
    assert again.max_grad_norm == {"head": 0.5}
    step(ours, again, seed=1)
    assert_same_optimizers(again, ours)
    assert_same_bits(again.last_step.clip_factor["head"], ours.last_step.clip_factor["head"])


def test_what_was_read_of_a_step_stays() -> None:
    ours = _optimizer(ADAM, "cpu", max_grad_norm=1.0)
    step(ours)
    last = ours.last_step
    norm = float(last.grad_norm["total"])
    step(ours, seed=1)
    assert float(last.grad_norm["total"]) == norm != float(ours.last_step.grad_norm["total"])


@pytest.mark.parametrize(
    "limits, match",
    [
        (-1.0, "max_grad_norm"),
        (math.nan, "max_grad_norm"),
        ("1", "max_grad_norm"),
        ([1.0], "max_grad_norm"),
        ({}, "empty"),
        ({"tail": 1.0}, "unknown role 'tail'"),
        ({"body": -1.0}, r"max_grad_norm\['body'\]"),
        ({"head": None}, r"max_grad_norm\['head'\]"),
        (torch.ones(2), "one element"),
    ],
)
def test_bad_limits(limits: Any, match: str) -> None:
    groups = groups_of([[3], [4]])
    with pytest.raises((ValueError, TypeError), match=match):
        sf.StackelbergAdamW(groups, max_grad_norm=limits)
    ours = sf.StackelbergAdamW(groups, max_grad_norm=0.25)
    with pytest.raises((ValueError, TypeError), match=match):
        ours.max_grad_norm = limits
    assert ours.max_grad_norm == 0.25


@by_backend
def test_a_norm_as_small_as_torchs_epsilon(backend: str) -> None:
    chosen_backend, device = chosen(backend)
    p = nn.Parameter(torch.ones(4, device=device))
    ours = sf.StackelbergSGD([p], lr=1.0, backend=chosen_backend, max_grad_norm=1e-6)
    p.grad = torch.tensor([1e-6, 0.0, 0.0, 0.0], device=device)
    ours.step()
    assert float(ours.last_step.clip_factor["body"]) == pytest.approx(0.5, rel=1e-6)


def test_limits_are_not_shared_with_the_caller() -> None:
    limits = {"body": 1.0}
    ours = sf.StackelbergAdamW(groups_of([[3], [4]]), max_grad_norm=limits)
    limits["head"] = 2.0
    ours.max_grad_norm["head"] = 3.0
    assert ours.max_grad_norm == {"body": 1.0}


def test_differentiable_steps_are_not_clipped() -> None:
    ours = sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], differentiable=True)
    with pytest.raises(ValueError, match="clip_grad_norm_"):
        ours.max_grad_norm = 1.0
    with pytest.raises(ValueError, match="clip_grad_norm_"):
        sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], differentiable=True, max_grad_norm=1.0)


KEYS = [
    *("launches", "grad_norm/body", "grad_norm/head", "grad_norm/total"),
    *("clip_factor/body", "clip_factor/head", "skipped"),
]


def _reported(limit: Any, found_inf: float | None = None) -> Any:
    groups = [{"params": [nn.Parameter(torch.ones(4))], "role": role} for role in ("body", "head")]
    optimizer = sf.StackelbergSGD(groups, max_grad_norm=limit, fused=found_inf is not None)
    for group in groups:
        group["params"][0].grad = torch.full((4,), 1.5)
    if found_inf is not None:
        optimizer.grad_scale = torch.tensor(1.0)
        optimizer.found_inf = torch.tensor(found_inf)
    optimizer.step()
    return optimizer.last_step


def test_a_report_in_plain_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Always the same keys, None for what was not measured, and one read for all tensors of a device."""
    unmeasured = _reported(None)
    measured = _reported({"head": 1.0})
    skipped = _reported(None, found_inf=1.0)
    both = _reported(2.0, found_inf=0.0)
    reads: list[int] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: reads.append(1) or tolist(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("read alone"))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("read alone"))
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: pytest.fail("read alone"))
    assert unmeasured.as_dict() == {**dict.fromkeys(KEYS), "launches": unmeasured.launches}
    assert reads == []
    found = measured.as_dict()
    assert reads == [1]
    assert list(found) == KEYS
    assert (found["grad_norm/body"], found["grad_norm/head"]) == (3.0, 3.0)
    assert found["grad_norm/total"] == math.sqrt(18)
    assert found["clip_factor/body"] == 1.0
    assert found["clip_factor/head"] == pytest.approx(1 / 3)
    assert found["skipped"] is None
    assert skipped.as_dict()["skipped"] is True
    assert list(both.as_dict()) == KEYS
    assert both.as_dict()["skipped"] is False
    assert json.loads(json.dumps(both.as_dict())) == both.as_dict()
