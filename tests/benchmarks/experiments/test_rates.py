"""The weakly convex instance: phase retrieval and its Moreau envelope."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("scipy")
pytest.importorskip("rich")

from stackelberg_fused.benchmarks.experiments import rates


@given(st.tuples(*[st.floats(-1, 1)] * 4), st.floats(0, 1))
def test_phase_retrieval_is_weakly_convex(points: tuple[float, ...], weight: float) -> None:
    """f(., w) + rho / 2 |theta|^2 is convex: its part in theta alone is, and the rest is a square."""
    a, b = torch.tensor(points, dtype=torch.float64).view(2, 2)

    def convex(theta: torch.Tensor) -> float:
        return float(rates.phase_retrieval(theta[None])) + rates.RHO / 2 * float(
            theta.square().sum()
        )

    between = convex(weight * a + (1 - weight) * b)
    assert between <= weight * convex(a) + (1 - weight) * convex(b) + 1e-9


def test_phase_retrieval_is_not_convex() -> None:
    values = [float(rates.phase_retrieval(torch.tensor([[x, 0.0]]))) for x in (-1.0, 0.0, 1.0)]
    assert values[1] > (values[0] + values[2]) / 2


def test_moreau_gradient_vanishes_at_a_minimum_and_is_the_distance_of_the_proximal_point() -> None:
    """Against a general minimiser, at points inside and at the border of the box."""
    from scipy.optimize import minimize

    points = torch.tensor([[0.3, -0.2], [1.0, 0.4], [-0.9, 0.9]])
    for theta, found in zip(points, rates.moreau(points), strict=True):

        def proximal(x: Any, theta: torch.Tensor = theta) -> float:
            at = torch.tensor(x)
            far = float((at - theta.double()).square().sum())
            return float(rates.phase_retrieval(at[None])) + rates.RHO * far

        tries = [
            minimize(proximal, start, method="Nelder-Mead", bounds=[(-1, 1)] * 2,
                     options={"xatol": 1e-9, "fatol": 1e-12})
            for start in (theta.tolist(), [0.5, 0.5], [-0.5, 0.5])
        ]  # fmt: skip
        best = min(tries, key=lambda t: t.fun)
        exact = float(((theta.double() - torch.tensor(best.x)) ** 2).sum()) * (2 * rates.RHO) ** 2
        assert float(found) == pytest.approx(exact, rel=1e-3, abs=1e-9)
