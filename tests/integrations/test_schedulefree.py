"""The wrapper of schedule-free around our optimizer, beside the same around torch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from beside_torch import assert_close_weights, assert_same_weights, small_batches, small_net
from torch import nn

import stackelberg_fused as sf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("lightning")]


@pytest.fixture(scope="module")
def schedulefree() -> Any:
    return pytest.importorskip("schedulefree")


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    rates = {"body": 1e-3, "head": 1e-2}
    return [{**g, "lr": rates[g["role"]]} for g in sf.split_body_head(model, head="2")]


def _train(model: nn.Module, optimizer: Any, batches: Any) -> nn.Module:
    optimizer.train()
    for inputs, targets in batches:
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.eval()
    return model


def _with_state(optimizer: Any) -> Any:
    """torch's Adam makes no moments for a parameter that has any state, and the wrapper's "z" is state."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            moments = {name: torch.zeros_like(param) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[param] = {"step": torch.tensor(0.0), **moments}
    return optimizer


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_as_around_torchs(schedulefree: Any, name: str) -> None:
    options = {"betas": (0.0, 0.99)} if name == "AdamW" else {}

    def trained(base: Any) -> nn.Module:
        model = small_net()
        optimizer = base(_groups(model), **options)
        wrapper = schedulefree.ScheduleFreeWrapper(optimizer, momentum=0.9, weight_decay_at_y=0.1)
        return _train(model, wrapper, small_batches())

    def torchs(*args: Any, **more: Any) -> Any:
        optimizer = getattr(torch.optim, name)(*args, **more)
        return _with_state(optimizer) if name == "AdamW" else optimizer

    assert_close_weights(trained(getattr(sf, f"Stackelberg{name}")), trained(torchs))
    if name == "AdamW":
        with pytest.raises(KeyError, match="exp_avg"):
            trained(torch.optim.AdamW)


def test_resumed_as_uninterrupted(schedulefree: Any) -> None:
    """The wrapper keeps its "z" in the optimizer's state, which brings it along."""

    def wrapped(model: nn.Module) -> Any:
        base = sf.StackelbergAdamW(_groups(model), betas=(0.0, 0.99))
        return schedulefree.ScheduleFreeWrapper(base, momentum=0.9)

    model = small_net()
    optimizer = wrapped(model)
    _train(model, optimizer, small_batches()[:4])
    resumed = small_net()
    resumed.load_state_dict(model.state_dict())
    other = wrapped(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((model, optimizer), (resumed, other)):
        _train(one, its, small_batches()[4:])
    assert_same_weights(resumed, model)
