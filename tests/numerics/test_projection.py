"""Projections: nearest points, rounding towards zero, and the limits of projected gradient descent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from cases import normal
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.numerics.projection import SLACK, project_simplex, toward_zero


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=12),
    st.floats(0.01, 50),
    st.integers(0, 99),
)
def test_nearest_point_of_a_simplex(values: list[float], total: float, seed: int) -> None:
    """The projection p satisfies the variational inequality <x - p, y - p> <= 0 for all y in the simplex."""
    x = torch.tensor(values, dtype=torch.float64)
    p = project_simplex(x, total, total * (1 - SLACK), total * (1 + SLACK))
    assert bool((p >= 0).all())
    assert float(p.sum()) == pytest.approx(total, rel=1e-12)
    y = total * torch.softmax(5 * normal(len(values), seed).double(), 0)
    for other in (y, *(total * torch.eye(len(values), dtype=torch.float64))):
        assert float((x - p) @ (other - p)) <= 1e-9 * (1 + total) * 100


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_toward_zero(value: float, dtype: torch.dtype) -> None:
    x = torch.tensor([value], dtype=torch.float64)
    found = toward_zero(x, dtype).double()
    assert float(found.abs()) <= abs(value)
    assert math.copysign(1, float(found)) == math.copysign(1, value)
    away = torch.nextafter(
        found.to(dtype), torch.tensor([math.copysign(math.inf, value)], dtype=dtype)
    )
    assert float(away.double().abs()) > abs(value)


@pytest.mark.parametrize("constraint", [sf.L2Ball(0.7), sf.Simplex(1.3)], ids=lambda s: s.kind)
def test_constrained_convex_problems_against_scipy(constraint: Any) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    factor = normal((6, 6), 1).double()
    a, b = (factor @ factor.t() + torch.eye(6)).numpy(), 3 * normal(6, 2).double().numpy()
    if isinstance(constraint, sf.L2Ball):
        within = {"type": "ineq", "fun": lambda x: constraint.radius**2 - x @ x}
        bounds = None
    else:
        within = {"type": "eq", "fun": lambda x: x.sum() - constraint.total}
        bounds = [(0, None)] * 6
    exact = optimize.minimize(
        lambda x: 0.5 * x @ a @ x - b @ x,
        np.full(6, 0.1),
        jac=lambda x: a @ x - b,
        method="SLSQP",
        bounds=bounds,
        constraints=[within],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert exact.success
    x = nn.Parameter(torch.zeros(6))
    ours = sf.StackelbergSGD([x], lr=0.02, constraint=constraint)
    for _ in range(3000):
        wide = x.double()
        (0.5 * wide @ torch.from_numpy(a) @ wide - torch.from_numpy(b) @ wide).backward()
        ours.step()
        ours.zero_grad()
    np.testing.assert_allclose(x.detach().numpy(), exact.x, atol=2e-5)
