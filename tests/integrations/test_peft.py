"""PEFT's adapters with our optimizer, beside the same with torch's."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from beside_torch import assert_close_weights, small_batches, small_net
from torch import nn

import stackelberg_fused as sf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("transformers")]


@pytest.fixture
def peft() -> Any:
    pytest.importorskip("peft.optimizers")
    return pytest.importorskip("peft")


def _adapted(peft: Any) -> Any:
    model = small_net()
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "2"]))


def _train(model: nn.Module, optimizer: Any) -> nn.Module:
    for inputs, targets in small_batches():
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_lora_as_with_torchs(peft: Any, backend: str) -> None:
    """Frozen weights may be given, and stay."""
    trained = []
    for kind in (partial(sf.StackelbergAdamW, backend=backend), torch.optim.AdamW):
        model = _adapted(peft)
        before = copy.deepcopy(model.base_model.model[0].base_layer.weight)
        optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.1)
        trained.append(_train(model, optimizer))
        assert torch.equal(model.base_model.model[0].base_layer.weight, before)
        assert len(optimizer.state) == 4
    assert_close_weights(*trained)


def _factory(peft: Any, model: Any, kind: Any, **more: Any) -> Any:
    make = peft.optimizers.create_loraplus_optimizer
    return make(model, kind, lr=1e-3, loraplus_lr_ratio=16.0, **more)


def test_lora_plus_as_with_torchs(peft: Any) -> None:
    """PEFT's factory takes our class."""
    trained = []
    for kind in (sf.StackelbergAdamW, torch.optim.AdamW):
        model = _adapted(peft)
        trained.append(_train(model, _factory(peft, model, kind, loraplus_weight_decay=0.1)))
    assert_close_weights(*trained)


def test_our_groups_are_the_factorys(peft: Any) -> None:
    """The decay of a bias, of which there is none here, is not."""
    theirs = _adapted(peft)
    expected = _train(theirs, _factory(peft, theirs, torch.optim.AdamW, loraplus_weight_decay=0.1))
    model = _adapted(peft)
    groups = sf.lora_plus_groups(model, lr=1e-3, ratio=16.0)
    assert_close_weights(_train(model, sf.StackelbergAdamW(groups, weight_decay=0.1)), expected)


@pytest.mark.parametrize("kind", [sf.StackelbergAdamW, torch.optim.AdamW])
def test_the_factory_ignores_weight_decay(peft: Any, kind: Any) -> None:
    model = _adapted(peft)
    groups = _factory(peft, model, kind, weight_decay=0.1).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0}
    ours = sf.lora_plus_groups(model, lr=1e-3)
    assert {g["weight_decay"] for g in kind(ours, weight_decay=0.1).param_groups} == {0.1}


def test_adapters_that_are_merged_and_switched(peft: Any) -> None:
    """PEFT writes to weights in place; the optimizer reads what is there."""
    model = _adapted(peft)
    optimizer = sf.StackelbergAdamW(sf.lora_plus_groups(model, lr=1e-2))
    _train(model, optimizer)
    inputs = small_batches(1)[0][0]
    before = model(inputs)
    model.merge_adapter()
    torch.testing.assert_close(model(inputs), before)
    model.unmerge_adapter()
    _train(model, optimizer)
    assert optimizer.state[next(p for p in model.parameters() if p.requires_grad)]["step"] == 16
