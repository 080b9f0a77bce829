"""The leader's objective Phi and its gradient against finite differences; the body's buffers stay unchanged."""

from __future__ import annotations

import math

import pytest
import torch
from cases import normal
from linear_heads import INPUTS, OUTPUTS, features_and_targets, linear
from torch import Tensor, nn

import stackelberg_fused as sf

pytest.importorskip("scipy.optimize")


def _body() -> nn.Sequential:
    body = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, INPUTS)).double()
    with torch.no_grad():
        for number, p in enumerate(body.parameters()):
            p.copy_(normal(tuple(p.shape), 70 + number))
    return body


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_stackelberg_value(loss: str) -> None:
    """The hypergradient norm equals that of finite differences of Phi, as the envelope theorem says."""
    body, head, ridge = _body(), linear().double(), 0.01
    inputs, y = normal((40, 5), 8).double(), features_and_targets(loss)[1]
    y = y.double() if loss == "mse" else y
    found = sf.stackelberg_value(body, head, inputs, y, loss, ridge)
    assert found.follower_gap > 0
    assert all(p.grad is None for p in body.parameters())

    def phi() -> float:
        with torch.no_grad():
            return sf.best_response(head, body(inputs), y, loss, ridge).value

    assert found.phi == pytest.approx(phi(), abs=1e-10)
    squares = 0.0
    for p in body.parameters():
        flat = p.detach().view(-1)
        for i in range(p.numel()):
            kept = float(flat[i])
            sides = []
            for h in (1e-4, -1e-4):
                flat[i] = kept + h
                sides.append(phi())
            flat[i] = kept
            squares += ((sides[0] - sides[1]) / 2e-4) ** 2
    assert found.grad_norm == pytest.approx(math.sqrt(squares), rel=1e-4)
    found.response.assign(head)
    again = sf.stackelberg_value(body, head, inputs, y, loss, ridge)
    assert abs(again.follower_gap) < 1e-10


def test_buffers_are_put_back_and_a_frozen_body_is_named() -> None:
    body = nn.Sequential(nn.Linear(5, INPUTS), nn.BatchNorm1d(INPUTS))
    before = {name: value.clone() for name, value in body.state_dict().items()}
    inputs, y = normal((40, 5), 8), features_and_targets("mse")[1]
    sf.stackelberg_value(body, linear(), inputs, y, "mse", 0.1)
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    body.requires_grad_(False)
    with pytest.raises(ValueError, match="no trained parameters"):
        sf.stackelberg_value(body, linear(), inputs, y, "mse", 0.1)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_head_that_is_not_finite(loss: str) -> None:
    head, body = linear(), nn.Linear(3, INPUTS)
    with torch.no_grad():
        head.weight[0, 0] = math.nan
    targets = normal((5, OUTPUTS), 2) if loss == "mse" else torch.arange(5) % OUTPUTS
    with pytest.raises(ValueError, match="head's parameters are not finite"):
        sf.stackelberg_value(body, head, normal((5, 3), 1), targets, loss, 0.1)


def test_buffers_that_a_pass_replaces_stay() -> None:
    class Counting(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, INPUTS)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            return super().forward(x)

    body = Counting()
    kept = body.seen
    sf.stackelberg_value(body, linear(), normal((5, 3), 1), normal((5, OUTPUTS), 2), "mse", 0.1)
    assert body.seen is kept
    assert float(kept) == 0
