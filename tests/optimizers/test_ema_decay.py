"""Averages of the weights: torch's on the reference, within an ulp or two on kernels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from averages import (
    ADAM,
    DECAYS,
    OPTIONS,
    assert_all_same,
    assert_averaged,
    averages,
    averaging_optimizer,
    train,
    values,
    without,
)
from backends import by_backend, chosen, rounds_fma_twice
from cases import (
    Options,
    groups_of,
    normal,
    set_gradients,
    sizes_for,
    step,
)
from checks import Snapshot, all_params, assert_same_optimizers
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_reference_averages_as_torch(
    options: Options, decay: float, dtype: torch.dtype
) -> None:
    groups = groups_of([[0, 1, 17], [63, 15]], dtype=dtype, mixed=options.mixed)
    # weights are averaged before they are rounded to a parameter of few bits, as its master has them
    master = "fp32" if dtype is torch.bfloat16 else None
    ours = options.ours(groups, backend="reference", ema_decay=decay, master=master)
    wide = torch.float32 if dtype is torch.bfloat16 else dtype
    expected = {p: v.to(wide) for p, v in zip(all_params(ours), values(ours), strict=True)}
    for number in range(4):
        train(ours, steps=range(number, number + 1))
        moved = [p for p in expected if p.grad is not None]
        weights = [ours.state[p].get("master", p.detach()) for p in moved]
        get_ema_multi_avg_fn(decay)([expected[p] for p in moved], weights, None)
    assert_all_same(averages(ours), list(expected.values()))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@by_backend
def test_near_a_lerp_and_the_update_is_what_it_was(backend: str, options: Options) -> None:
    if is_interpreting() and options.rule == "adam":
        pytest.skip("left out: the interpreter's time; the mixed launch has every rule")
    ours, never = (
        averaging_optimizer(options, backend, ema_decay=0.9),
        averaging_optimizer(options, backend),
    )
    on_cpu = averaging_optimizer(options, "cpu", ema_decay=0.9)
    old = values(ours)
    for number in range(3):
        train(ours, never, on_cpu, steps=range(number, number + 1))
        assert_averaged(ours, old, 0.9)
        old = [ema.clone() for ema in averages(ours)]
    assert_same_optimizers(without(ours, "ema"), never)
    assert ours.launches == (0 if backend == "reference" else 3)
    if backend != "reference" and not rounds_fma_twice():
        assert_same_optimizers(ours, on_cpu)


@pytest.mark.parametrize("decay", DECAYS)
@by_backend
def test_decays(backend: str, decay: float) -> None:
    ours = averaging_optimizer(ADAM, backend, ema_decay=decay)
    old = values(ours)
    step(ours)
    assert_averaged(ours, old, decay)
    if decay == 0:
        assert_all_same(averages(ours), all_params(ours))


@by_backend
def test_by_role_and_by_group(backend: str) -> None:
    by_role = averaging_optimizer(ADAM, backend, ema_decay={"body": 0.9})
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(3), device)
    for group in groups:
        group["ema_decay"] = 0.9 if group["role"] == "body" else None
    by_group = ADAM.ours(groups, backend=instance, ema_decay=0.1)
    everywhere = averaging_optimizer(ADAM, backend, ema_decay=0.9)
    train(by_role, by_group, everywhere)
    assert_same_optimizers(by_role, by_group)
    assert [("ema" in by_role.state[p]) for p in all_params(by_role)] == [True] * 6 + [False] * 3
    for group in everywhere.param_groups:
        for p in group["params"] if group["role"] == "head" else ():
            del everywhere.state[p]["ema"]
    assert_same_optimizers(by_role, everywhere)
    assert by_role.last_step.launches == (0 if backend == "reference" else 1)


@pytest.mark.parametrize("backend", ["reference", "cpu", "cuda-on-host"])
def test_layouts(backend: str) -> None:
    """Channels-last, transposed, gapped, 0-d and without elements, beside contiguous copies."""
    params = [
        nn.Parameter(normal((4, 3, 5, 7), 1).to(memory_format=torch.channels_last)),
        nn.Parameter(normal((30, 40), 2).t()),
        nn.Parameter(normal((50, 200), 3)[:, ::2]),
        nn.Parameter(normal((), 4)),
        nn.Parameter(normal((0, 3), 5)),
    ]
    twins = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]
    pair = [ADAM.ours(side, backend=chosen(backend)[0], ema_decay=0.9) for side in (params, twins)]
    train(*pair, steps=range(4))
    assert_same_optimizers(*pair)
    assert_all_same(averages(pair[0]), averages(pair[1]))
    strides = [p.stride() for p in params]
    with pair[0].ema_weights(), pair[1].ema_weights():
        assert [p.stride() for p in params] == strides
        assert_all_same(params, twins)
    assert_same_optimizers(*pair)


@pytest.mark.parametrize("more", [{"max_grad_norm": 1.0}, {"update_every": 2}], ids=str)
@by_backend
def test_together_with(backend: str, more: dict[str, Any]) -> None:
    """A clipped step, and one that comes only every other time: the average follows what the weights did."""
    ours = averaging_optimizer(ADAM, backend, ema_decay=0.5, **more)
    never = averaging_optimizer(ADAM, backend, **more)
    old = values(ours)
    for number in range(4):
        step(ours, never, seed=number)
        if number % 2 == 0 and "update_every" in more:
            assert_all_same(averages(ours), old)
        else:
            assert_averaged(ours, old, 0.5)
        old = [ema.clone() for ema in averages(ours)]
    assert_same_optimizers(without(ours, "ema"), never)
    launches = 2 if "max_grad_norm" in more else 1
    assert ours.last_step.launches == (0 if backend == "reference" else launches)


@by_backend
def test_nan_stays_where_it_is(backend: str) -> None:
    instance, device = chosen(backend)
    params = [nn.Parameter(normal(20, i).to(device)) for i in range(2)]
    ours = sf.StackelbergSGD(params, lr=0.1, backend=instance, ema_decay=0.9)
    for number in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        if number == 0:
            params[0].grad[3] = torch.nan
        ours.step()
    for ema, wrong in zip(averages(ours), ([3], []), strict=True):
        assert ema.isnan().nonzero().flatten().tolist() == wrong


@by_backend
def test_with_a_decay_of_1_an_average_stays(backend: str) -> None:
    """Where schedules end; torch's averages accept it too."""
    ours, twin = (averaging_optimizer(ADAM, backend, ema_decay=0.9) for _ in range(2))
    train(ours, twin, steps=range(2))
    before = [ema.clone() for ema in averages(ours)]
    for group in ours.param_groups:
        group["ema_decay"] = 1.0
    train(ours, twin, steps=range(2, 5))
    assert_all_same(averages(ours), before)
    assert_same_optimizers(without(ours, "ema"), without(twin, "ema"))


BAD = (-0.1, 1.0001, 1.5, math.nan, math.inf, "0.9", [0.9], True, torch.ones(2), {"body": 0.5})


@pytest.mark.parametrize("decay", BAD, ids=repr)
def test_bad_decays(decay: Any) -> None:
    name = r"param group 1 \(head\).*ema_decay"
    groups = groups_of([[3], [4]])
    ours = sf.StackelbergAdamW(groups, backend="cpu", ema_decay=0.9)
    step(ours)
    set_gradients(ours.param_groups, 1)
    before = Snapshot(ours)
    added = {"params": [nn.Parameter(torch.ones(2))], "ema_decay": decay}
    with pytest.raises((ValueError, TypeError), match=r"param group 2 \(body\).*ema_decay"):
        ours.add_param_group(added)
    ours.param_groups[1]["ema_decay"] = decay
    with pytest.raises((ValueError, TypeError), match=name):
        ours.step()
    before.assert_unchanged()
    if not isinstance(decay, dict):
        with pytest.raises((ValueError, TypeError), match=name):
            sf.StackelbergAdamW(groups_of([[3], [4]]), ema_decay={"head": decay})
    with pytest.raises(ValueError, match="unknown role 'tail'"):
        sf.StackelbergAdamW(groups_of([[3], [4]]), ema_decay={"tail": 0.5})


def test_differentiable_steps_are_not_averaged() -> None:
    with pytest.raises(ValueError, match=r"param group 0 \(body\): differentiable"):
        sf.StackelbergAdamW([nn.Parameter(torch.ones(3))], differentiable=True, ema_decay=0.9)
