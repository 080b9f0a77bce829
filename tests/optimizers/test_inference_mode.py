"""What an optimizer makes within `torch.inference_mode()` is used outside, as torch's parameters are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import OURS, TORCHS, normal
from checks import assert_same_bits
from torch import Tensor, nn

import stackelberg_fused as sf

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "not flattened": {"flatten": False},
    "reference": {"backend": "reference"},
    "flat": {"grads": "flat"},
    "clipped": {"max_grad_norm": 0.1},
    "averaged": {"ema_decay": 0.5},
    "eight bits": {"state_dtype": "8bit"},
    "in a ball": {"constraint": sf.L2Ball(0.5)},
}


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def _gradients(model: nn.Module, number: int) -> None:
    model(normal((5, 3), number)).square().sum().backward()


def _weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def _run(name: str, inside: bool) -> list[Tensor]:
    model = _model()
    with torch.inference_mode(inside):
        optimizer = sf.StackelbergAdamW(model.parameters(), lr=0.1, **OPTIONS[name])
    for number in range(6):
        optimizer.zero_grad()
        _gradients(model, number)
        with torch.inference_mode(inside and number % 2 == 0):
            optimizer.step()
            if number == 2:
                optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if number == 4:
                optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    for entry in optimizer.state.values():
        assert not any(t.is_inference() for t in entry.values() if isinstance(t, Tensor))
    return _weights(model)


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_differs_within_it(name: str) -> None:
    for p, q in zip(_run(name, True), _run(name, False), strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("rule", OURS)
def test_constructed_within_it_as_torchs(rule: str) -> None:
    sides = []
    for cls in (OURS[rule], TORCHS[rule]):
        model = _model()
        with torch.inference_mode():
            optimizer = cls(model.parameters(), lr=0.1)
        for number in range(3):
            optimizer.zero_grad()
            _gradients(model, number)
            optimizer.step()
        sides.append(_weights(model))
    for p, q in zip(*sides, strict=True):
        torch.testing.assert_close(p, q)
