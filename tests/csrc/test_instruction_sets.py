"""8-bit moments on every instruction set that this machine has: same bits, whatever the numbers."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from backends import chosen
from checks import assert_same_bits
from low_precision_values import tensors
from torch import nn

import stackelberg_fused as sf

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


def gradient(chance: random.Random, size: int) -> torch.Tensor:
    """Of any magnitude, in one part larger than elsewhere; with zeros, infinities and NaN now and then."""
    grad = (torch.randn(size).double() * 10.0 ** chance.randint(-45, 30)).float()
    if chance.random() < 0.5:
        grad *= torch.rand(size) ** 8
    if chance.random() < 0.4:
        grad[torch.rand(size) < 0.3] = 0.0
    if chance.random() < 0.2:
        grad[torch.rand(size) < 0.003] = chance.choice([torch.inf, -torch.inf, torch.nan])
    if chance.random() < 0.2:
        grad[512:1024] *= 1e25
    return grad


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
@pytest.mark.parametrize("kind", [sf.StackelbergAdam, sf.StackelbergAdamW])
@pytest.mark.parametrize("master", ["stochastic", "split8", None, "float32"])
def test_random_cases(master: str | None, kind: type, isa: str) -> None:
    chance = random.Random(f"{master} {kind.__name__} {isa}")
    torch.manual_seed(chance.getrandbits(32))
    dtype = torch.float32 if master == "float32" else torch.bfloat16
    scheme = {} if dtype == torch.float32 else {"master": master}
    for case in range(CASES):
        size = chance.choice(SIZES)
        how = {name: chance.choice(values) for name, values in CHOICES.items()}
        start = (torch.randn(size) * 10.0 ** chance.randint(-20, 10)).to(dtype)
        start[torch.rand(size) < 0.1] = chance.choice([0.0, -0.0, 1.0])
        optimizers = [
            kind(
                [nn.Parameter(start.clone())],
                backend=chosen(backend)[0],
                **{"state_dtype": "8bit", "float32_state": "none", **scheme, **how},
            )
            for backend in ("cpu", isa)
        ]
        for step in range(3):
            grad = gradient(chance, size).to(dtype)
            for optimizer in optimizers:
                (p,) = optimizer.param_groups[0]["params"]
                p.grad = grad.clone()
                optimizer.step()
                if step == 1:
                    with torch.no_grad():
                        p[::7] = 0  # beside what remainders there are
        ours, expected = (tensors(optimizer) for optimizer in optimizers)
        for name, found in ours.items():
            assert_same_bits(found, expected[name], f"case {case}, {name}, {how}")
