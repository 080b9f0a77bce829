"""Curvature from Hessian-vector products against dense Hessians, and the inequalities between f and Phi."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.game import spectrum as spectrum_module

pytest.importorskip("scipy")

RIDGE = 1e-2


def _model(width: int, outputs: int, bias: bool = True) -> tuple[nn.Module, nn.Linear]:
    body = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3), nn.Tanh())
    head = nn.Linear(3, outputs, bias)
    with torch.no_grad():
        for number, p in enumerate([*body.parameters(), *head.parameters()]):
            p.copy_(normal(tuple(p.shape), 20 + number))
    return body, head


def _data(loss: str, outputs: int, rows: int = 30) -> tuple[Tensor, Tensor]:
    inputs = normal((rows, 4), 1)
    if loss == "mse":
        return inputs, normal((rows, outputs), 2)
    return inputs, torch.arange(rows) % outputs


class Dense:
    """f as a function of two flat vectors, with dense derivatives."""

    def __init__(self, body: nn.Module, head: nn.Linear, x: Tensor, y: Tensor, loss: str) -> None:
        self.shapes = {n: p.shape for n, p in body.named_parameters()}
        self.body, self.x, self.loss = body, x.double(), loss
        self.y = y.double() if loss == "mse" else y
        self.rows, self.outputs = head.in_features + (head.bias is not None), head.out_features
        self.theta = torch.cat([p.detach().double().view(-1) for p in body.parameters()])
        parts = [head.weight.detach().t(), *([] if head.bias is None else [head.bias.view(1, -1)])]
        self.w = torch.cat([part.detach().double() for part in parts]).reshape(-1)

    def features(self, theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in self.shapes.values()])
        named = {n: p.view(s) for (n, s), p in zip(self.shapes.items(), parts, strict=True)}
        z = torch.func.functional_call(self.body, named, self.x)
        return z if self.rows == z.shape[1] else torch.cat([z, z.new_ones(len(z), 1)], 1)

    def f(self, theta: Tensor, w: Tensor) -> Tensor:
        out = self.features(theta) @ w.view(self.rows, self.outputs)
        compared = F.mse_loss if self.loss == "mse" else F.cross_entropy
        return compared(out, self.y) + RIDGE / 2 * w.square().sum()

    def at(self, w: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the Hessian and the gradient of each function at (theta, w)."""
        pair = (self.theta, w)
        (tt, tw), (wt, ww) = torch.autograd.functional.hessian(self.f, pair)
        gt, gw = torch.autograd.functional.jacobian(self.f, pair)
        joint = torch.cat([torch.cat([tt, tw], 1), torch.cat([wt, ww], 1)])
        schur = tt - tw @ torch.linalg.solve(ww, wt)
        return {"joint": (joint, torch.cat([gt, gw])), "body": (tt, gt), "phi": (schur, gt)}


def _best(dense: Dense, body: nn.Module, head: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    found = sf.best_response(head, body(x).double(), y, dense.loss, RIDGE)
    return found.matrix.reshape(-1)


@pytest.mark.parametrize("method", ["dense", "lanczos"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_against_dense_hessians(
    loss: str, bias: bool, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, head = _model(3, 2, bias)
    x, y = _data(loss, 2)
    monkeypatch.setattr(spectrum_module, "DENSE", 0 if method == "lanczos" else 1000)
    found = sf.curvature(body, head, x, y, loss, RIDGE, tolerance=1e-9, max_iterations=2000)
    dense = Dense(body, head, x, y, loss)
    points = {"stale": dense.w, "response": _best(dense, body.double(), head, x.double(), y)}
    for point, w in points.items():
        spectra = getattr(found, point)
        assert spectra.keys() == {"joint", "body"} | ({"phi"} if point == "response" else set())
        exact = dense.at(w)
        for name, spectrum in spectra.items():
            matrix, gradient = exact[name]
            values = torch.linalg.eigvalsh(matrix)
            scale = float(values.abs().max())
            assert spectrum.smallest == pytest.approx(float(values[0]), abs=1e-6 * scale)
            assert spectrum.largest == pytest.approx(float(values[-1]), abs=1e-6 * scale)
            along = float(gradient @ matrix @ gradient / (gradient @ gradient))
            assert spectrum.along_gradient == pytest.approx(along, abs=1e-5 * scale)
            if float(values[0]) > 1e-4 * scale:
                assert spectrum.condition == pytest.approx(float(values[-1] / values[0]), rel=1e-3)
            if float(values[0]) < 0:
                assert math.isnan(spectrum.condition)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["mse", "cross_entropy"]))
def test_at_one_point_phi_is_never_sharper_and_better_conditioned_where_f_is_convex(
    seed: int, loss: str
) -> None:
    """Checked at (theta, w*). The largest eigenvalue of hess Phi is at most that of f_tt. If the joint Hessian is
    positive definite, the smallest eigenvalue of hess Phi is at least its smallest, and the condition number at most
    its condition number."""
    body, head = _model(2, 2)
    with torch.no_grad():
        for number, p in enumerate(body.parameters()):
            p.copy_(normal(tuple(p.shape), seed + number) * 0.3)
    x, y = _data(loss, 2)
    if seed % 2:  # a quadratic in both players: convex near its minimum
        body = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    found = sf.curvature(body, head, x, y, loss, RIDGE).response
    slack = 1e-9 * abs(found["joint"].largest)
    assert found["phi"].largest <= found["body"].largest + slack
    if found["joint"].smallest > 1e-7:
        assert found["phi"].smallest >= found["joint"].smallest - slack
        assert found["phi"].condition <= found["joint"].condition * (1 + 1e-6)


class Scale(nn.Module):
    """A body of one parameter: with a head without bias, f = mean (w theta x - y)^2 + ridge / 2 w^2."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta * x


def test_where_the_joint_hessian_is_positive_definite() -> None:
    """Expected values are derived by hand: w* = 2 theta / (2 theta^2 + ridge)."""
    found = sf.curvature(
        Scale(), nn.Linear(1, 1, bias=False), torch.ones(4, 1), torch.ones(4, 1), "mse", 0.5
    ).response
    w = 2 / 2.5
    tt, tw, ww = 2 * w * w, 2 * (2 * w - 1), 2.5
    assert found["body"].largest == pytest.approx(tt)
    assert found["phi"].largest == pytest.approx(tt - tw * tw / ww)
    joint = np.linalg.eigvalsh([[tt, tw], [tw, ww]])
    assert found["joint"].smallest == pytest.approx(joint[0])
    assert found["phi"].smallest >= found["joint"].smallest > 0
    assert found["phi"].condition == 1.0


def test_nothing_is_modified_and_the_table_names_the_points() -> None:
    body, head = _model(3, 2)
    body.insert(1, nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in body.state_dict().items()}
    found = sf.curvature(body, head, *_data("mse", 2))
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())
    assert all(p.grad is None for p in [*body.parameters(), *head.parameters()])
    lines = found.table().splitlines()
    assert [line[:14].strip() for line in lines] == [
        "point",
        *["(theta, w): he"] * 2,
        *["(theta, w*): b"] * 3,
    ]
    assert [line.split(" ")[0] for line in lines[1:]] == ["(theta,"] * 5


def test_parameters_without_influence_and_dropout() -> None:
    body, head = _model(3, 2)
    body.append(nn.Dropout(0.5))
    body.unused = nn.Parameter(torch.ones(2))
    found = sf.curvature(body, head, *_data("mse", 2))
    assert found.response["body"].error < 1e-9


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"ridge": 0.0}, ValueError, "needs a ridge > 0"),
    ({"loss": "l1"}, ValueError, "no best response is known"),
    ({"head": nn.Sequential()}, TypeError, "got Sequential"),
    ({"body": nn.Tanh(), "inputs": torch.ones(30, 3)}, ValueError, "no trained parameters"),
]


@pytest.mark.parametrize("change, error, match", BAD)
def test_what_is_refused(change: dict[str, Any], error: type[Exception], match: str) -> None:
    body, head = _model(3, 2)
    x, y = _data("mse", 2)
    with pytest.raises(error, match=match):
        sf.curvature(**{"body": body, "head": head, "inputs": x, "targets": y, **change})


def test_a_head_of_zeros() -> None:
    """f_tt is zero there, so that the Lanczos method has no valid first vector."""
    body, head = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, 3)), nn.Linear(3, 2)
    for p in head.parameters():
        nn.init.zeros_(p)
    found = sf.curvature(body, head, *_data("mse", 2), "mse", RIDGE)
    assert (found.stale["body"].largest, found.stale["body"].smallest) == (0.0, 0.0)
    assert found.response["body"].largest > 0


def test_without_gradients_around_it() -> None:
    body, head = _model(5, 2)
    expected = sf.curvature(body, head, *_data("mse", 2), "mse", RIDGE)
    with torch.no_grad():
        assert sf.curvature(body, head, *_data("mse", 2), "mse", RIDGE) == expected


def test_attention_is_differentiated_twice() -> None:
    body = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    inputs, targets = normal((3, 5, 4), 1), torch.arange(15).view(3, 5) % 3
    found = sf.curvature(body, nn.Linear(4, 3), inputs, targets, "cross_entropy", RIDGE)
    assert all(math.isfinite(s.largest) for s in (*found.stale.values(), *found.response.values()))


def test_a_body_that_keeps_its_output() -> None:
    body, head = _model(5, 2)
    body.last = body(normal((3, 4), 1))
    with pytest.raises(RuntimeError, match="does it keep an output of its own"):
        sf.curvature(body, head, *_data("mse", 2), "mse", RIDGE)
