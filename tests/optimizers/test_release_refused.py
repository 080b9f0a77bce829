"""release="backward": what it does not go with, refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import OURS, normal
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import stackelberg_fused as sf
from stackelberg_fused.optimizers import release

REFUSED: dict[str, dict[str, Any]] = {
    "unknown release 'forward'": {"release": "forward"},
    "max_grad_norm": {"max_grad_norm": 1.0},
    "grads='flat'": {"grads": "flat"},
    "differentiable=True": {"differentiable": True},
}


@pytest.mark.parametrize("said", REFUSED)
@pytest.mark.parametrize("rule", OURS)
def test_refused_at_construction(rule: str, said: str) -> None:
    param = nn.Parameter(normal(5, 1))
    address = param.data_ptr()
    with pytest.raises(ValueError, match=said):
        OURS[rule]([param], **{"release": "backward", **REFUSED[said]})
    assert param.data_ptr() == address
    assert not param._post_accumulate_grad_hooks


def test_capturable_is_refused() -> None:
    with pytest.raises(ValueError, match="capturable=True"):
        sf.StackelbergAdam([nn.Parameter(normal(5, 1))], release="backward", capturable=True)


def test_clipping_cannot_be_turned_on() -> None:
    optimizer = sf.StackelbergAdam([nn.Parameter(normal(5, 1))], release="backward")
    with pytest.raises(ValueError, match="max_grad_norm"):
        optimizer.max_grad_norm = 1.0
    optimizer.max_grad_norm = None


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("fused", [None, True])
def test_a_gradient_scaler_is_refused_at_its_step(fused: bool | None, unscales: bool) -> None:
    param = nn.Parameter(normal(5, 1))
    optimizer = sf.StackelbergAdamW([param], release="backward", fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(param.sum()).backward()
    if unscales:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="gradient scaler"):
        scaler.step(optimizer)
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.zero_grad()
    disabled.scale(param.sum()).backward()
    disabled.step(optimizer)
    assert float(optimizer.state[param]["step"]) == 1.0


def test_gradients_that_are_reduced_after_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(release, "BATCH_BYTES", 0)
    model = nn.Linear(5, 5)
    optimizer = sf.StackelbergSGD(model.parameters(), release="backward")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        wrapped = DistributedDataParallel(model)
        before = model.weight.detach().clone()
        with pytest.raises(RuntimeError, match="DistributedDataParallel"):
            wrapped(torch.ones(1, 5)).sum().backward()
        assert torch.equal(model.weight, before)
        other = nn.Linear(5, 5)
        unwrapped = sf.StackelbergSGD(other.parameters(), release="backward")
        other(torch.ones(1, 5)).sum().backward()
        unwrapped.step()
    finally:
        torch.distributed.destroy_process_group()
    assert optimizer.launches == 0
