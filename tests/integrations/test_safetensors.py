"""Weights and state that lie in flat buffers, in files of safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import assert_same_weights, small_batches, small_net
from checks import assert_same_bits
from torch import nn

import stackelberg_fused as sf

safetensors = pytest.importorskip("safetensors.torch")


def _trained() -> tuple[nn.Module, Any]:
    model = small_net()
    optimizer = sf.StackelbergAdamW(sf.split_body_head(model, head="2"), lr=1e-3, ema_decay=0.9)
    for inputs, targets in small_batches(3):
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step(zero_grad=True)
    return model, optimizer


@pytest.mark.parametrize("how", ["save_file", "save_model"])
def test_weights(tmp_path: Path, how: str) -> None:
    """Parameters lie in one buffer: none is refused as shared memory, and a file has no more than the weights."""
    model, _ = _trained()
    path = tmp_path / "model.safetensors"
    if how == "save_file":
        safetensors.save_file(model.state_dict(), path)
    else:
        safetensors.save_model(model, str(path))
    elements = sum(p.numel() for p in model.parameters())
    assert path.stat().st_size < 4 * elements + 1000
    found = small_net()
    found.load_state_dict(safetensors.load_file(path))
    assert_same_weights(found, model)


def test_loaded_under_an_optimizer(tmp_path: Path) -> None:
    """`load_model` writes into the parameters: the optimizer goes on with them."""
    model, _ = _trained()
    safetensors.save_model(model, str(tmp_path / "model.safetensors"))
    other = small_net()
    optimizer = sf.StackelbergSGD(other.parameters(), lr=0.5)
    safetensors.load_model(other, str(tmp_path / "model.safetensors"))
    assert_same_weights(other, model)
    other[0].bias.grad = torch.ones_like(other[0].bias)
    optimizer.step()
    assert_same_bits(other[0].bias, model[0].bias - 0.5)


def test_averages(tmp_path: Path) -> None:
    model, optimizer = _trained()
    averages = {name: optimizer.state[p]["ema"] for name, p in model.named_parameters()}
    safetensors.save_file(averages, tmp_path / "ema.safetensors")
    with optimizer.ema_weights():
        for name, value in safetensors.load_file(tmp_path / "ema.safetensors").items():
            assert_same_bits(model.get_parameter(name), value, name)
