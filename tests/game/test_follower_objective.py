"""The follower's objective and its derivatives against autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import normal
from linear_heads import INPUTS, OUTPUTS, features_and_targets, linear

from stackelberg_fused.game.follower_objective import FollowerObjective


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_derivatives(loss: str) -> None:
    head, (x, y) = linear(), features_and_targets(loss)
    objective = FollowerObjective.of(loss, head, x, y, 0.3)
    w, direction = (
        objective.matrix(head).requires_grad_(),
        normal((INPUTS + 1, OUTPUTS), 9).double(),
    )
    out = objective.rows @ w
    value = F.mse_loss(out, y.double()) if loss == "mse" else F.cross_entropy(out, y)
    value = value + 0.15 * w.square().sum()
    assert float(objective.value(w.detach())) == pytest.approx(value.item())
    (gradient,) = torch.autograd.grad(value, w, create_graph=True)
    torch.testing.assert_close(objective.gradient(w.detach()), gradient.detach())
    (product,) = torch.autograd.grad((gradient * direction).sum(), w)
    torch.testing.assert_close(objective.hessian_product(w.detach(), direction), product)
