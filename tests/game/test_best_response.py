"""The follower's best response against SciPy, and the bound on its distance to the minimum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import normal
from linear_heads import INPUTS, OUTPUTS, features_and_targets, linear
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.game.follower_objective import FollowerObjective

optimize = pytest.importorskip("scipy.optimize")


def _by_scipy(loss: str, head: nn.Linear, x: Tensor, y: Tensor, ridge: float) -> float:
    """Return the minimum of torch's loss plus ridge, computed by BFGS."""
    shapes = [p.shape for p in head.parameters()]

    def f(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = torch.from_numpy(flat).requires_grad_()
        parts = list(w.split([s.numel() for s in shapes]))
        out = F.linear(x.double(), parts[0].view(shapes[0]), parts[1] if len(parts) > 1 else None)
        value = F.mse_loss(out, y.double()) if loss == "mse" else F.cross_entropy(out, y)
        value = value + ridge / 2 * w.square().sum()
        value.backward()
        return value.item(), w.grad.numpy()

    start = np.zeros(sum(s.numel() for s in shapes))
    return optimize.minimize(f, start, jac=True, method="BFGS", options={"gtol": 1e-10}).fun


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [1.0, 1e-3])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_nobody_does_better(loss: str, ridge: float, bias: bool) -> None:
    head, (x, y) = linear(bias), features_and_targets(loss)
    before = [p.detach().clone() for p in head.parameters()]
    found = sf.best_response(head, x, y, loss, ridge)
    assert all(torch.equal(p, q) for p, q in zip(head.parameters(), before, strict=True))
    assert found.value == pytest.approx(_by_scipy(loss, head, x, y, ridge), abs=1e-10)
    assert found.gap <= 1e-12
    assert (found.bias is None) == (not bias)
    assert (found.iterations > 0) == (loss == "cross_entropy")
    found.assign(head)
    torch.testing.assert_close(head.weight.double(), found.weight)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_the_certificate_bounds_the_gap_wherever_it_is_asked(loss: str) -> None:
    """f - Phi <= |grad_w f|^2 / (2 ridge) at any head."""
    (x, y), ridge = features_and_targets(loss), 0.05
    phi = sf.best_response(linear(), x, y, loss, ridge).value
    for scale in (0.0, 0.01, 1.0):
        head = linear()
        with torch.no_grad():
            for p in head.parameters():
                p.mul_(scale)
        objective = FollowerObjective.of(loss, head, x, y, ridge)
        w = objective.matrix(head)
        gap = float(objective.value(w)) - phi
        assert 0 <= gap <= float(objective.gradient(w).norm()) ** 2 / (2 * ridge)


def test_without_a_ridge_least_squares_has_the_least_norm() -> None:
    """Includes linearly dependent features, and more features than rows."""
    for rows in (3, 40):
        x, y = features_and_targets("mse", rows)
        x[:, 1] = x[:, 0]
        found = sf.best_response(linear(False), x, y)
        expected = np.linalg.pinv(x.double().numpy()) @ y.double().numpy()
        np.testing.assert_allclose(found.weight.t().numpy(), expected, atol=1e-10)
        assert found.gap == math.inf
        assert found.grad_norm < 1e-10


def test_separable_features() -> None:
    """With a ridge there is a minimiser. Without one there is none, and the call is refused."""
    x = torch.tensor([[-1.0], [1.0]]).expand(2, INPUTS)
    found = sf.best_response(linear(), x, torch.tensor([0, 1]), "cross_entropy", 1e-6)
    assert found.gap <= 1e-12
    with pytest.raises(ValueError, match="needs a ridge > 0"):
        sf.best_response(linear(), x, torch.tensor([0, 1]), "cross_entropy")


def test_sequences_probabilities_and_rows_that_are_left_out() -> None:
    head, (x, y) = linear(), features_and_targets("cross_entropy")
    plain = sf.best_response(head, x, y, "cross_entropy", 0.1)
    nested = sf.best_response(head, x.view(4, 10, INPUTS), y.view(4, 10), "cross_entropy", 0.1)
    soft = sf.best_response(head, x, F.one_hot(y, OUTPUTS).float(), nn.CrossEntropyLoss(), 0.1)
    more = torch.cat([x, x]), torch.cat([y, torch.full_like(y, -100)])
    left_out = sf.best_response(head, *more, "cross_entropy", 0.1)
    for found in (nested, soft, left_out):
        torch.testing.assert_close(found.weight, plain.weight)
        assert found.value == pytest.approx(plain.value)
    # torch's own function takes classes in dimension 1, which are others here
    with pytest.raises(ValueError, match="takes classes in dimension 1"):
        sf.best_response(head, x.view(4, 10, INPUTS), y.view(4, 10), F.cross_entropy, 0.1)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "loss": ({"loss": F.l1_loss}, ValueError, "no best response is known"),
    "options": ({"loss": nn.MSELoss(reduction="sum")}, ValueError, "no best response is known"),
    "weights": (
        {"loss": nn.CrossEntropyLoss(weight=torch.ones(4))},
        ValueError,
        "no best response is known",
    ),
    "head": ({"head": nn.Sequential(nn.Linear(6, 4))}, TypeError, "got Sequential"),
    "ridge": ({"ridge": -1.0}, ValueError, "ridge must be finite and >= 0"),
    "ridge type": ({"ridge": "1"}, TypeError, "ridge must be a number"),
    "features": ({"features": torch.ones(40, 5)}, ValueError, r"floating point \[\.\.\., 6\]"),
    "targets": ({"targets": torch.ones(40, 5)}, ValueError, r"targets must be \(40, 4\)"),
    "diverged": ({"features": torch.full((40, 6), math.nan)}, ValueError, "are not finite"),
    "no rows": (
        {"features": torch.ones(0, 6), "targets": torch.ones(0, 4)},
        ValueError,
        "no rows",
    ),
    "classes": (
        {"loss": "cross_entropy", "ridge": 1.0, "targets": torch.full((40,), 7)},
        ValueError,
        "classes below 4",
    ),
    "too few steps": (
        {
            "loss": "cross_entropy",
            "ridge": 1e-3,
            "targets": torch.zeros(40).long(),
            "max_iterations": 1,
        },
        RuntimeError,
        "after 1 Newton steps",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(kind: str) -> None:
    change, error, match = BAD[kind]
    x, y = features_and_targets("mse")
    with pytest.raises(error, match=match):
        sf.best_response(**{"head": linear(), "features": x, "targets": y, **change})


def test_one_row_as_a_vector_and_a_ridge_that_rounding_swallows() -> None:
    x, y = normal(INPUTS, 1), normal(OUTPUTS, 2)
    as_vector = sf.best_response(linear(), x, y, "mse", 0.1)
    as_batch = sf.best_response(linear(), x[None], y[None], "mse", 0.1)
    torch.testing.assert_close(as_vector.weight, as_batch.weight)
    wide = nn.Linear(64, OUTPUTS, bias=False)
    x, y = normal((10, 64), 3), normal((10, OUTPUTS), 4)
    found = sf.best_response(wide, x, y, "mse", 1e-18)
    expected = np.linalg.pinv(x.double().numpy()) @ y.double().numpy()
    np.testing.assert_allclose(found.weight.t().numpy(), expected, atol=1e-7)


def test_class_156_of_few_bits_is_not_left_out() -> None:
    head = nn.Linear(INPUTS, 200)
    features, classes = normal((5, INPUTS), 1), torch.tensor([156, 3, 156, 199, 0])
    found = [
        sf.best_response(head, features, classes.to(dtype), "cross_entropy", 0.1)
        for dtype in (torch.int64, torch.uint8)
    ]
    assert found[0].value == found[1].value


def test_a_compiled_head() -> None:
    head = linear()
    features, targets = normal((5, INPUTS), 1), normal((5, OUTPUTS), 2)
    expected = sf.best_response(head, features, targets, "mse", 0.1)
    found = sf.best_response(torch.compile(head), features, targets, "mse", 0.1)
    assert torch.equal(found.weight, expected.weight)
