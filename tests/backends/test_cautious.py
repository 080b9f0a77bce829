"""Cautious weight decay: beside a loop over the elements in float64, on every backend, and through state dicts.

Its parity with everything else that a launch can do is in the matrices over `kernel_options` and over schemes.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from backends import by_backend, chosen
from cases import normal, step
from checks import all_params, assert_close, assert_same_bits, assert_same_optimizers
from tolerances import SEVERAL_STEPS, STEP
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.native.tables import TILE_ELEMENTS

# zeros of both signs, subnormals, what underflows or overflows in a product or a square, infinity, NaN
WEIGHTS = [0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 0.5, -0.5, 1.0, -1.0, 1e30, -1e30, 3e38, -3e38]
WEIGHTS += [math.inf, -math.inf, math.nan]
GRADIENTS = [0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 1e-12, -1e-12, 1.0, -1.0, 1e30, -1e30]
GRADIENTS += [math.inf, -math.inf, math.nan]


def rounded(x: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(x))


def divided(x: float, y: float) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64(x) / np.float64(y))


class Oracle:
    """One element in float64; what is stored, and the update whose sign counts, rounded to float32."""

    def __init__(self, weight: float, group: dict[str, Any]) -> None:
        self.weight, self.group = weight, group
        self.m = self.v = self.largest = self.update = 0.0
        self.steps, self.decays = 0, True

    def step(self, grad: float) -> float:
        group = self.group
        self.steps += 1
        if group["maximize"]:
            grad = -grad
        beta1, beta2 = group["betas"]
        self.m = rounded(beta1 * self.m + (1 - beta1) * grad if beta1 else grad)
        self.v = rounded(beta2 * self.v + (1 - beta2) * grad * grad if beta2 else grad * grad)
        second = self.v
        if group["amsgrad"]:
            second = self.largest = math.nan if math.isnan(second) else max(self.largest, second)
        root = math.sqrt(second / (1 - beta2**self.steps))
        rate = group["lr"] / (1 - beta1**self.steps)
        self.update = rounded(rate * divided(self.m, root + group["eps"]))
        self.decays = not (self.update > 0 > self.weight or self.update < 0 < self.weight)
        factor = 1 - group["lr"] * group["weight_decay"] if self.decays else 1.0
        self.weight = rounded(factor * self.weight - self.update)
        return self.weight


def group_of(param: Tensor, **settings: Any) -> dict[str, Any]:
    return {"params": [param], "cautious": True, "weight_decay": 0.25, **settings}


def assert_steps_as_oracle(
    backend: str, weights: list[float], grads: list[list[float]], **settings: Any
) -> None:
    """The elements in full tiles and in a ragged one, which kernels may take in different ways."""
    found, device = chosen(backend)
    copies = -(-(TILE_ELEMENTS + 77) // len(weights))
    param = nn.Parameter(torch.tensor(weights * copies, device=device))
    optimizer = sf.StackelbergAdamW([group_of(param, **settings)], backend=found)
    oracles = [Oracle(rounded(weight), optimizer.param_groups[0]) for weight in weights]
    for values in grads:
        param.grad = torch.tensor(values * copies, device=device)
        before = [oracle.weight for oracle in oracles]
        expected = [o.step(rounded(g)) for o, g in zip(oracles, values, strict=True)]
        optimizer.step()
        # the weight may cancel against the update: rounding errors are relative to the larger
        scale = [max(abs(b), abs(o.update)) for b, o in zip(before, oracles, strict=True)]
        scale = [x if math.isfinite(x) else 1.0 for x in scale]
        actual = param.detach().cpu()
        wanted, scales = (torch.tensor(x * copies) for x in (expected, scale))
        if len(grads) == 1:
            assert_close(actual, wanted, scales, STEP["param"])
        else:
            torch.testing.assert_close(actual, wanted, **SEVERAL_STEPS)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": 1.0},
        {"lr": 1.0, "amsgrad": True},
        {
            "lr": 1e-30,
            "weight_decay": 2.5e29,
        },  # updates that underflow to zero, and a decay that shows
        {"lr": 2.0, "weight_decay": 0.5},  # a factor of zero
        {"lr": 3.0, "weight_decay": 0.5},  # a factor below zero
        {"lr": 1e-3, "weight_decay": 0.0},
    ],
    ids=str,
)
@by_backend
def test_special_values_beside_a_loop_in_float64(
    backend: str, settings: dict[str, Any], maximize: bool
) -> None:
    """Betas of zero make the moments the gradient and its square; eps = 1 keeps small updates small."""
    pairs = [(weight, grad) for weight in WEIGHTS for grad in GRADIENTS]
    weights, grads = [weight for weight, _ in pairs], [grad for _, grad in pairs]
    settings = {"betas": (0.0, 0.0), "eps": 1.0, "maximize": maximize, **settings}
    assert_steps_as_oracle(backend, weights, [grads], **settings)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@by_backend
def test_steps_beside_a_loop_in_float64(backend: str, amsgrad: bool, maximize: bool) -> None:
    weights = normal(60, 1).tolist()
    grads = [normal(60, 10 + number).tolist() for number in range(4)]
    grads[2][:20] = [0.0] * 20
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.5}
    assert_steps_as_oracle(backend, weights, grads, amsgrad=amsgrad, maximize=maximize, **settings)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
@by_backend
def test_an_element_steps_as_with_weight_decay_or_as_without(
    backend: str, amsgrad: bool, maximize: bool
) -> None:
    """To the bit, also the signs of zeros; `reference` takes the plain rule's rounding from torch."""
    found, device = chosen(backend)
    pairs = [(weight, grad) for weight in WEIGHTS for grad in GRADIENTS]
    weights, grads = (torch.tensor(list(x)).repeat(20) for x in zip(*pairs, strict=True))
    how = {"betas": (0.0, 0.0), "eps": 1.0, "amsgrad": amsgrad, "maximize": maximize, "lr": 1.0}
    results = []
    for more in ({}, {"cautious": False}, {"cautious": False, "weight_decay": 0.0}):
        param = nn.Parameter(weights.to(device))
        param.grad = grads.to(device)
        group = group_of(param, **{**how, **more})
        sf.StackelbergAdamW([group], backend=found).step()
        results.append(param.detach().cpu())
    decays = []
    for weight, grad in pairs:
        oracle = Oracle(rounded(weight), {**group, **how, "weight_decay": 0.25})
        oracle.step(rounded(grad))
        decays.append(oracle.decays)
    ours, decayed, plain = results
    expected = torch.where(torch.tensor(decays).repeat(20), decayed, plain)
    assert 0 < sum(decays) < len(decays)
    if backend == "reference":
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-44, equal_nan=True)
    else:
        assert_same_bits(ours, expected)


@by_backend
def test_products_that_underflow_have_a_sign(backend: str) -> None:
    found, device = chosen(backend)
    param = nn.Parameter(torch.tensor([1e-30, -1e-30, 1e-30, -1e-30], device=device))
    param.grad = torch.tensor([1e-30, -1e-30, -1e-30, 1e-30], device=device)
    settings = {"lr": 1.0, "betas": (0.0, 0.0), "eps": 1.0, "weight_decay": 0.5}
    sf.StackelbergAdamW([group_of(param, **settings)], backend=found).step()
    expected = torch.tensor([-0.5e-30, 0.5e-30, 2e-30, -2e-30])
    torch.testing.assert_close(param.detach().cpu(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@by_backend
def test_without_weight_decay_it_changes_nothing(backend: str, dtype: torch.dtype) -> None:
    optimizers = []
    for cautious in (True, False):
        found, device = chosen(backend)
        p = nn.Parameter(normal(4200, 1).to(device, dtype))
        how = {"weight_decay": 0.0, "cautious": cautious, "lr": 0.1}
        optimizers.append(sf.StackelbergAdamW([p], backend=found, **how))
    for seed in range(3):
        step(*optimizers, seed=seed)
    assert_same_optimizers(*optimizers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@by_backend
def test_edits_between_steps_are_followed(backend: str, dtype: torch.dtype) -> None:
    def build(cautious: bool) -> Any:
        found, device = chosen(backend)
        groups = [
            {
                "params": [
                    nn.Parameter(normal((2, 40), k).to(device, dtype)) for k in (2 * i, 2 * i + 1)
                ]
            }
            for i in range(2)
        ]
        groups[1]["cautious"] = cautious
        return sf.StackelbergAdamW(groups, lr=0.1, weight_decay=0.5, backend=found)

    ours = build(False)
    decays = []
    for seed, cautious in enumerate([False, True, True, False, True]):
        ours.param_groups[1]["cautious"] = cautious
        other, opposite = build(cautious), build(not cautious)
        for fresh in (other, opposite):
            saved = copy.deepcopy(ours.state_dict())
            saved["param_groups"][1]["cautious"] = fresh.param_groups[1]["cautious"]
            for p, q in zip(all_params(fresh), all_params(ours), strict=True):
                p.detach().copy_(q.detach())
            if seed:
                fresh.load_state_dict(saved)
        step(ours, other, opposite, seed=seed)
        assert_same_optimizers(ours, other, f"step {seed}")
        last = [all_params(optimizer)[-1].detach() for optimizer in (ours, opposite)]
        decays.append(torch.equal(*last))
    assert not any(decays)


def test_the_constructor_speaks_for_its_adamw_groups() -> None:
    groups = [
        {"params": [nn.Parameter(normal(3, 1))], **settings}
        for settings in ({}, {"cautious": False}, {"rule": "sgd"}, {"rule": "adam"})
    ]
    optimizer = sf.StackelbergAdamW(groups, lr=0.1, cautious=True)
    assert [group["cautious"] for group in optimizer.param_groups] == [True, False, False, False]
    optimizer.add_param_group({"params": [nn.Parameter(normal(3, 2))]})
    assert optimizer.param_groups[-1]["cautious"] is True
    step(optimizer)


@pytest.mark.parametrize("cls", [sf.StackelbergAdam, sf.StackelbergSGD])
@by_backend
def test_adamw_groups_of_other_optimizers(backend: str, cls: type) -> None:
    sides = []
    for kind, more in ((cls, {"rule": "adamw"}), (sf.StackelbergAdamW, {})):
        found, device = chosen(backend)
        p = nn.Parameter(normal(50, 1).to(device))
        groups = [{"params": [p], "cautious": True, "weight_decay": 0.5, **more}]
        sides.append(kind(groups, lr=0.1, backend=found))
    for seed in range(3):
        step(*sides, seed=seed)
    assert_same_optimizers(*sides)


def _pair(cautious: bool, then: bool) -> tuple[Any, Any]:
    return tuple(
        sf.StackelbergAdamW([nn.Parameter(normal(9, 1))], lr=0.1, weight_decay=0.5, cautious=value)
        for value in (cautious, then)
    )


@pytest.mark.parametrize("then", [False, True])
@pytest.mark.parametrize("cautious", [False, True])
def test_state_dicts_bring_it_along(cautious: bool, then: bool) -> None:
    ours, other = _pair(cautious, then)
    step(ours)
    saved = ours.state_dict()
    assert saved["param_groups"][0]["cautious"] is cautious
    all_params(other)[0].data.copy_(all_params(ours)[0].detach())
    other.load_state_dict(saved)
    assert other.param_groups[0]["cautious"] is cautious
    step(ours, other, seed=1)
    assert_same_optimizers(ours, other)
    copied = copy.deepcopy(ours)
    assert copied.param_groups[0]["cautious"] is cautious


@pytest.mark.parametrize("cautious", [False, True])
def test_torchs_state_dict_leaves_it_as_it_is(cautious: bool) -> None:
    ours, _ = _pair(cautious, cautious)
    torchs = torch.optim.AdamW([nn.Parameter(normal(9, 1))], lr=0.1, weight_decay=0.5)
    step(torchs)
    ours.load_state_dict(torchs.state_dict())
    assert ours.param_groups[0]["cautious"] is cautious
    torchs.load_state_dict(ours.state_dict())  # and back
    step(torchs, seed=1)


def test_a_state_dict_of_torchs_adam_leaves_it_as_it_is() -> None:
    """AdamW stays AdamW, as torch's does."""
    ours, _ = _pair(True, True)
    step(ours)
    torchs = torch.optim.Adam([nn.Parameter(normal(9, 1))], lr=0.1)
    step(torchs)
    ours.load_state_dict(torchs.state_dict())
    assert ours.param_groups[0]["rule"] == "adamw"
    assert ours.param_groups[0]["cautious"] is True
    step(ours, seed=1)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_differentiable(tensor_lr: bool, amsgrad: bool) -> None:
    """The mask is a constant to autograd; written here without anything in place."""

    def run(ours: bool) -> list[Tensor]:
        start, target = (normal(9, i).double().requires_grad_() for i in (1, 2))
        lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=tensor_lr)
        param = start.clone()
        how = {"weight_decay": 0.5, "betas": (0.8, 0.9), "amsgrad": amsgrad}
        optimizer = None
        if ours:
            rate = lr if tensor_lr else 0.05
            optimizer = sf.StackelbergAdamW(
                [param], lr=rate, cautious=True, differentiable=True, **how
            )
        m = v = largest = torch.zeros(9, dtype=torch.float64)
        for count in range(1, 2 if amsgrad else 4):
            loss = ((param - target) ** 2 * torch.arange(1.0, 10.0)).sum()
            (grad,) = torch.autograd.grad(loss, param, create_graph=True)
            if ours:
                param.grad = grad
                optimizer.step()
                continue
            m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
            largest = torch.maximum(largest, v)
            denom = ((largest if amsgrad else v) / (1 - 0.9**count)).sqrt() + 1e-8
            update = lr / (1 - 0.8**count) * m / denom
            decays = (update * param >= 0).detach()
            param = torch.where(decays, param * (1 - lr * 0.5), param) - update
        inputs = [start, target, *([lr] if tensor_lr else [])]
        return [param.detach(), *torch.autograd.grad(((param - target) ** 2).sum(), inputs)]

    for mine, theirs in zip(run(True), run(False), strict=True):
        assert mine.abs().sum() > 0
        # torch counts steps in float32, so that bias corrections are
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
