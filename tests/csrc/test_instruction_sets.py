"""Schemes of fewer bits on every instruction set that this machine has: same bits, whatever the numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from backends import chosen
from checks import assert_same_bits
from low_precision_values import tensors
from schemes_and_gradients import GRADS, STATES, WEIGHTS, parameter

import stackelberg_fused as sf
from stackelberg_fused.groups.schemes import MASTER_STATE

CASES = 60
SIZES = [512, 513, 1024, 4096, 5000, 12345]
CHOICES: dict[str, list[Any]] = {
    "lr": [1e-3, 0.1, 0.0, 1e-30, 1e30],
    "betas": [(0.9, 0.999), (0.0, 0.99), (0.5, 0.5), (0.99, 0.0)],
    "eps": [1e-8, 0.0, 1e-30, 1e10],
    "weight_decay": [0.0, 0.01, 3.0],
    "maximize": [False, True],
    "constraint": [None, None, sf.Box(-0.3, 0.7)],
    "max_grad_norm": [None, None, 1.0, 1e-10],
}


def gradient(chance: random.Random, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Of any magnitude, in one part larger than elsewhere; with zeros, infinities and NaN now and then."""
    magnitude = chance.randint(-8, 3) if dtype == torch.float16 else chance.randint(-45, 30)
    grad = (torch.randn(size).double() * 10.0**magnitude).float()
    if chance.random() < 0.5:
        grad *= torch.rand(size) ** 8
    if chance.random() < 0.4:
        grad[torch.rand(size) < 0.3] = 0.0
    if chance.random() < 0.2:
        grad[torch.rand(size) < 0.003] = chance.choice([torch.inf, -torch.inf, torch.nan])
    if chance.random() < 0.2:
        grad[512:1024] *= 1e25
    return grad.to(dtype)


def disturb(optimizer: Any, chance: random.Random) -> None:
    """Change parameters beside what their scheme stores of them: to zero, by an ulp, or to anything."""
    (p,) = optimizer.param_groups[0]["params"]
    with torch.no_grad():
        match chance.randrange(4):
            case 0:
                p[::7] = 0
            case 1:
                p[::5] = -0.0
            case 2:
                p[::3] = torch.nextafter(p[::3], torch.tensor(torch.inf, dtype=p.dtype))
            case 3:
                p[::11] = chance.choice([1.0, -2.5e-5, 60000.0])


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
@pytest.mark.parametrize("dtype, master", WEIGHTS, ids=str)
def test_random_cases(dtype: torch.dtype, master: str | None, isa: str) -> None:
    chance = random.Random(f"{dtype} {master} {isa}")
    torch.manual_seed(chance.getrandbits(32))
    scheme = {} if dtype == torch.float32 else {"master": master}
    for case in range(CASES):
        size = chance.choice(SIZES)
        kind = chance.choice([sf.StackelbergAdam, sf.StackelbergAdamW])
        how = {name: chance.choice(values) for name, values in CHOICES.items()}
        how["state_dtype"] = STATES[case % len(STATES)]
        if kind is sf.StackelbergAdamW:
            how["cautious"] = chance.random() < 0.3
        grad_dtype = chance.choice(GRADS)
        # of float16, some are infinite to begin with
        start = (torch.randn(size) * 10.0 ** chance.choice([-20, -9, -5, -2, 0, 4, 10])).to(dtype)
        start[torch.rand(size) < 0.1] = chance.choice([0.0, -0.0, 1.0])
        optimizers = [
            kind(
                [parameter(start.clone(), grad_dtype)],
                backend=chosen(backend)[0],
                **{"float32_state": "none", **scheme, **how},
            )
            for backend in ("cpu", isa)
        ]
        seed = chance.getrandbits(32)
        for step in range(3):
            grad = gradient(chance, size, grad_dtype)
            for optimizer in optimizers:
                (p,) = optimizer.param_groups[0]["params"]
                p.grad = grad.clone()
                optimizer.step()
                if step == 1:
                    disturb(optimizer, random.Random(seed))
        ours, expected = (tensors(optimizer) for optimizer in optimizers)
        for name, found in ours.items():
            assert_same_bits(found, expected[name], f"case {case}, {name}, {grad_dtype}, {how}")


def all_finite(dtype: torch.dtype) -> torch.Tensor:
    words = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    numbers = words.view(dtype)
    return numbers[numbers.isfinite()]


def half_step(x: torch.Tensor) -> torch.Tensor:
    """Return half the distance from numbers to their neighbours, as float32."""
    info = torch.finfo(x.dtype)
    exponent = torch.frexp(x.float()).exponent.double() - 1
    power = torch.where(x == 0, 0.0, torch.exp2(exponent)).clamp(min=info.tiny)
    return (power * info.eps / 2).float()


def beside(master: str, p: torch.Tensor) -> list[torch.Tensor]:
    """Return what may lie beside parameters, at the border of what counts."""
    if master == "kahan":
        half = half_step(p).to(p.dtype)
        beyond = torch.nextafter(half, torch.tensor(torch.inf, dtype=p.dtype))
        return [half, -half, beyond, -beyond, torch.zeros_like(p)]
    if master == "fp32":
        bits = p.float().view(torch.int32)
        dropped = 16 if p.dtype == torch.bfloat16 else 13
        ties = [bits + (1 << dropped - 1), bits - (1 << dropped - 1)]
        return [(b + off).view(torch.float32) for b in ties for off in (-1, 0, 1)]
    dtype = torch.int16 if master == "split16" else torch.int8
    info = torch.iinfo(dtype)
    return [torch.full(p.shape, n, dtype=dtype) for n in (info.min, info.max, -1, 0, 1)]


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
@pytest.mark.parametrize(
    "dtype, master", [(d, m) for d, m in WEIGHTS if m not in (None, "stochastic")], ids=str
)
def test_what_lies_beside_every_parameter(dtype: torch.dtype, master: str, isa: str) -> None:
    """Weights that are read and written again, as a rate of zero leaves them."""
    start = all_finite(dtype)
    for stored in beside(master, start):
        optimizers = []
        for backend in ("cpu", isa):
            p = torch.nn.Parameter(start.clone())
            how = {"lr": 0.0, "weight_decay": 0.0, "master": master, "float32_state": "none"}
            optimizer = sf.StackelbergAdamW([p], backend=chosen(backend)[0], **how)
            for step in range(2):
                p.grad = torch.zeros_like(p)
                optimizer.step()
                if step == 0:
                    optimizer.state[p][MASTER_STATE[master]].copy_(stored)
            optimizers.append(optimizer)
        ours, expected = (tensors(optimizer) for optimizer in optimizers)
        for name, found in ours.items():
            assert_same_bits(found, expected[name], f"{name}, beside it {stored[:3]}")
