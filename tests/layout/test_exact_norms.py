"""Norms of gradients and of balls are exact sums, rounded once: on every backend, however elements are distributed."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from checks import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.backends.triton import is_interpreting
from stackelberg_fused.layout.statistics import ClipLimits, Statistics
from stackelberg_fused.numerics.exact_sum import rounded

SIZES = (1, 2, 3, 63, 1000, 4095, 4096, 4097, 9000)
ANYTHING = ClipLimits(math.inf, math.inf, False)


def _spread(size: int, low: float, high: float) -> torch.Tensor:
    """Numbers of random signs whose binary exponents are anywhere in [low, high]."""
    exponents = torch.empty(size, dtype=torch.float64).uniform_(low, high)
    return (torch.randn(size).sign().double() * torch.exp2(exponents)).float()


def _values(kind: str, size: int) -> torch.Tensor:
    torch.manual_seed(size)
    if kind == "normal":
        return torch.randn(size)
    if kind == "a few large ones":
        x = torch.randn(size) * 1e-20
        x[size // 2 :: 997] = 3e37
        return x
    if kind == "zeros between":
        return torch.randn(size) * (torch.rand(size) < 0.02)
    low, high = {
        "every exponent": (-149, 127),
        "subnormal": (-149, -126),
        "the largest": (126, 127.99),
        "below 1e-22": (-149, -73),
        "just two slices": (-26, 0),
        "one slice too many": (-28, 0),
    }[kind]
    return _spread(size, low, high)


KINDS = (
    *("normal", "a few large ones", "zeros between", "every exponent", "subnormal"),
    *("the largest", "below 1e-22", "just two slices", "one slice too many"),
)


def _norm(values: torch.Tensor) -> float:
    exact = sum((Fraction(v) ** 2 for v in values.double().tolist()), Fraction(0))
    return math.sqrt(float(exact))  # both rounded to nearest


def _optimizer(parts: list[torch.Tensor], backend: str, **more: Any) -> Any:
    """One whose gradients these are, the first half the body's."""
    instance, device = chosen(backend)
    params = [nn.Parameter(torch.zeros(len(part), device=device)) for part in parts]
    for p, part in zip(params, parts, strict=True):
        p.grad = part.to(device)
    half = (len(params) + 1) // 2
    groups = [{"params": params[:half], "role": "body"}]
    if params[half:]:
        groups.append({"params": params[half:], "role": "head"})
    return sf.StackelbergSGD(groups, lr=0.0, backend=instance, max_grad_norm=math.inf, **more)


def _statistics(optimizer: Any) -> Statistics:
    (unit,) = optimizer._engine.units
    return unit.table.statistics_of(unit.table.spans[None])


@pytest.mark.parametrize("kind", KINDS)
@by_backend
def test_a_norm_is_that_of_the_exact_sum(backend: str, kind: str) -> None:
    sizes = (1, 1000, 4097) if is_interpreting() else SIZES
    for size in sizes:
        values = _values(kind, size)
        ours = _optimizer([values], backend)
        for _ in range(2):  # once more from buffers that a launch has left
            ours.step()
            assert float(ours.last_step.grad_norm["body"]) == _norm(values), size
            assert float(ours.last_step.grad_norm["head"]) == 0.0
        assert not _statistics(ours).sums.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@by_backend
def test_gradients_of_fewer_bits(backend: str, dtype: torch.dtype) -> None:
    instance, device = chosen(backend)
    values = _spread(4500, -24, 15).to(dtype)
    p = nn.Parameter(torch.zeros(4500, dtype=dtype, device=device))
    p.grad = values.to(device)
    ours = sf.StackelbergSGD([p], lr=0.0, backend=instance, max_grad_norm=math.inf)
    ours.step()
    assert float(ours.last_step.grad_norm["body"]) == _norm(values)


@by_backend
def test_gradients_at_any_address(backend: str) -> None:
    instance, device = chosen(backend)
    values = _values("every exponent", 5000)
    for shift in range(1, 4):
        p = nn.Parameter(torch.zeros(5000, device=device))
        p.grad = torch.zeros(5008, device=device)[shift : shift + 5000].copy_(values)
        ours = sf.StackelbergSGD([p], lr=0.0, backend=instance, max_grad_norm=math.inf)
        ours.step()
        assert float(ours.last_step.grad_norm["body"]) == _norm(values)


@by_backend
def test_infinities_and_nans_are_counted(backend: str) -> None:
    for special, expected in (
        ([math.inf], math.inf),
        ([-math.inf, math.inf], math.inf),
        ([math.nan], math.nan),
        ([math.inf, math.nan], math.nan),
    ):
        values = _values("every exponent", 5000)
        values[100 : 100 + 4500 : 4500 // len(special)] = 0
        for k, x in enumerate(special):
            values[100 + 4200 * k] = x
        ours = _optimizer([values, torch.ones(7)], backend)
        ours.step()
        found = float(ours.last_step.grad_norm["body"])
        assert found == expected or (math.isnan(found) and math.isnan(expected))
        assert float(ours.last_step.grad_norm["head"]) == math.sqrt(7.0)
        counts = [sum(map(math.isinf, special)), sum(map(math.isnan, special))]
        assert _statistics(ours).digits[0, -2:].tolist() == counts
        # and are forgotten
        for group in ours.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        ours.step()
        assert float(ours.last_step.grad_norm["body"]) == math.sqrt(5000.0)


def _split(values: torch.Tensor, chance: random.Random) -> list[torch.Tensor]:
    """Its elements in another order, in parts of any size."""
    order = torch.randperm(
        len(values), generator=torch.Generator().manual_seed(chance.getrandbits(32))
    )
    cuts = sorted(chance.sample(range(len(values)), min(len(values) - 1, chance.randint(0, 5))))
    return [part for part in torch.tensor_split(values[order], cuts) if len(part)]


@by_backend
def test_the_same_bits_however_elements_are_distributed(backend: str) -> None:
    """Over parameters of one optimizer, and over optimizers whose digits are added up, as ranks would."""
    chance = random.Random(3)
    for kind in ("normal", "every exponent"):
        values = _values(kind, 9000)
        for _ in range(2 if is_interpreting() else 5):
            parts = _split(values, chance)
            together = _optimizer([p for part in parts for p in (part, part.flip(0))], backend)
            body = together.param_groups[0]["params"]
            together.step()
            of_body = torch.cat([p.grad.cpu() for p in body])
            assert float(together.last_step.grad_norm["body"]) == _norm(of_body)
            ranks = [_optimizer([part], backend) for part in parts]
            for rank in ranks:
                rank.step()
            digits = torch.stack([_statistics(rank).digits for rank in ranks]).sum(0)
            for rank in ranks:
                _statistics(rank).conclude_digits(digits, ANYTHING)
                assert float(_statistics(rank).norms[0]) == _norm(values)
                assert float(_statistics(rank).norms[2]) == _norm(values)


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=30),
    st.integers(0, 2**32),
    st.sampled_from(["cpu", "avx2", "baseline", "cuda-on-host"]),
)
def test_any_numbers(values: list[float], seed: int, backend: str) -> None:
    """As the reference, in parts of any size."""
    x = torch.tensor(values)
    name = "triton" if is_interpreting() else backend
    for parts in ([x], _split(x, random.Random(seed))):
        ours, expected = _optimizer(parts, name), _optimizer(parts, "reference")
        for optimizer in (ours, expected):
            optimizer.step()
        assert_same_bits(rounded(_statistics(ours).digits).cpu(), _statistics(expected).sum_sq)
        for role, norm in expected.last_step.grad_norm.items():
            assert_same_bits(ours.last_step.grad_norm[role].cpu(), norm)


@by_backend
def test_a_ball_leaves_the_exact_sum_of_its_elements(backend: str) -> None:
    instance, device = chosen(backend)
    values = [_values("every exponent", 5000) * 1e-10, _values("normal", 70)]
    params = [nn.Parameter(v.to(device)) for v in values]
    ours = sf.StackelbergSGD(
        params, lr=0.0, backend=instance, constraint=sf.L2Ball(1e30), momentum=0.0
    )
    for _ in range(2):
        for p in params:
            p.grad = torch.zeros_like(p)
        ours.step()
        (unit,) = ours._engine.units
        joint = unit.table.joint_sets
        found = float(rounded(joint.digits)[0])
        assert math.sqrt(found) == _norm(torch.cat(values))
        assert not joint.sums.any()
        assert not joint.tiles_done.any()


@by_backend
def test_factors_of_balls_follow_from_their_digits(backend: str) -> None:
    """As a launch writes them, and as they are where each of two ranks has half of the elements."""
    instance, device = chosen(backend)
    values, radius = _values("normal", 5000), 0.7

    def stepped(*parts: torch.Tensor) -> Any:
        params = [nn.Parameter(part.clone().to(device)) for part in parts]
        ours = sf.StackelbergSGD(params, lr=0.0, backend=instance, constraint=sf.L2Ball(radius))
        for p in params:
            p.grad = torch.zeros_like(p)
        ours.step()
        return ours._engine.units[0].table.joint_sets

    together = stepped(values)
    ranks = [stepped(part) for part in values.split(2000)]
    if backend != "reference":  # which has no use for them
        assert float(together.factors[0]) == radius / _norm(values)
    digits = torch.stack([rank.digits for rank in ranks]).sum(0)
    for rank in ranks:
        rank.conclude_digits(digits)
        assert float(rank.factors[0]) == radius / _norm(values)
        assert torch.equal(rank.digits, together.digits)
    together.conclude_digits(torch.zeros_like(digits))
    assert float(together.factors[0]) == 1.0
