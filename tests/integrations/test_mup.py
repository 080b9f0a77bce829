"""The mup library's optimizers with ours as `impl`, beside torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from beside_torch import assert_close_weights, small_batches
from torch import nn

import stackelberg_fused as sf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("lightning")]
PAIRS = {
    "MuAdam": (sf.StackelbergAdam, torch.optim.Adam),
    "MuAdamW": (sf.StackelbergAdamW, torch.optim.AdamW),
    "MuSGD": (sf.StackelbergSGD, torch.optim.SGD),
}


@pytest.fixture(scope="module")
def mup() -> Any:
    return pytest.importorskip("mup")


def _net(mup: Any, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
        mup.MuReadout(width, 2),
    )  # fmt: skip


def _wide(mup: Any) -> nn.Module:
    torch.manual_seed(0)
    model = _net(mup, 32)
    mup.set_base_shapes(model, _net(mup, 8), delta=_net(mup, 16))
    return model


def _train(model: nn.Module, optimizer: Any) -> nn.Module:
    for inputs, targets in small_batches():
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("name", PAIRS)
def test_as_impl(mup: Any, name: str) -> None:
    """`MuAdamW` fixes `impl` itself; it is `MuAdam` with that class."""
    make = mup.MuSGD if name == "MuSGD" else mup.MuAdam
    trained = []
    for kind in PAIRS[name]:
        model = _wide(mup)
        optimizer = make(model.parameters(), impl=kind, lr=1e-2, weight_decay=0.1)
        assert len({group["lr"] for group in optimizer.param_groups}) > 1
        trained.append(_train(model, optimizer))
    assert_close_weights(*trained)


def test_mup_groups_are_its_groups(mup: Any) -> None:
    model, expected = _wide(mup), _wide(mup)
    groups = sf.mup_groups(model, lr=1e-2, weight_decay=0.1)
    _train(model, sf.StackelbergAdamW(groups))
    _train(expected, mup.MuAdamW(expected.parameters(), lr=1e-2, weight_decay=0.1))
    assert_close_weights(model, expected)
