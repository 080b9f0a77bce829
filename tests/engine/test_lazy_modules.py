"""Parameters of lazy modules, which have no shape before the first forward: stepped from then on, as in torch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from cases import OURS, TORCHS, Options, kernel_options, normal
from checks import assert_same_bits, assert_same_state
from torch import nn

import stackelberg_fused as sf

OPTIONS: dict[str, dict[str, Any]] = {
    "flat": {"grads": "flat"},
    "averaged": {"ema_decay": 0.5},
    "clipped": {"max_grad_norm": 0.1},
    "in turns": {"update_every": 2, "update_every_grads": "mean"},
    "eight bits": {"state_dtype": "8bit"},
    "in a ball": {"constraint": sf.L2Ball(0.5)},
}


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.LazyLinear(2))


def _seen(model: nn.Sequential) -> nn.Sequential:
    torch.manual_seed(1)  # of the initial weights
    model(normal((2, 3), 0))
    return model


def _train(model: nn.Module, optimizer: Any, numbers: Iterator[int] | range) -> None:
    for number in numbers:
        optimizer.zero_grad()
        model(normal((5, 3), number)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("options", [o for o in kernel_options() if "cautious" not in o.settings])
def test_as_in_torch(options: Options, backend: str) -> None:
    mine, theirs = _model(), _model()
    ours = options.ours(mine.named_parameters(), lr=0.01, backend=backend)
    torchs = options.torchs(theirs.named_parameters(), lr=0.01)
    for model, optimizer in ((mine, ours), (theirs, torchs)):
        torch.manual_seed(1)
        _train(model, optimizer, range(4))
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("name", OPTIONS)
def test_as_if_they_had_had_their_shapes(name: str) -> None:
    early, late = _model(), _seen(_model())
    sides = []
    for model in (early, late):
        optimizer = sf.StackelbergAdamW(model.parameters(), lr=0.1, **OPTIONS[name])
        optimizer.zero_grad()
        _seen(model) if model is early else None
        _train(model, optimizer, range(4))
        sides.append(optimizer)
    for p, q in zip(early.parameters(), late.parameters(), strict=True):
        assert_same_bits(p, q)
        assert_same_state(sides[0].state[p], sides[1].state[q])


def test_flat_gradients_are_there_once_shapes_are() -> None:
    model = _model()
    optimizer = sf.StackelbergSGD(model.parameters(), lr=0.1, grads="flat")
    before = sum(len(buffer) for buffer in optimizer.flat_grads["body"])
    _seen(model)
    assert sum(len(buffer) for buffer in optimizer.flat_grads["body"]) > before
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("rule", OURS)
def test_state_that_is_loaded_before(rule: str) -> None:
    saved, sides = _seen(_model()), []
    optimizer = OURS[rule](saved.parameters(), lr=0.01, backend="reference")
    _train(saved, optimizer, range(3))
    for cls in (OURS[rule], TORCHS[rule]):
        model = _model()
        loaded = cls(model.parameters(), lr=0.01)
        loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        model.load_state_dict(saved.state_dict())
        _train(model, loaded, range(3, 6))
        sides.append(model)
    for p, q in zip(sides[0].parameters(), sides[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_loaded_state_that_does_not_fit_is_refused_once_that_can_be_said() -> None:
    model = _model()
    optimizer = sf.StackelbergAdam(model.named_parameters(), lr=0.1)
    saved = nn.Sequential(nn.Linear(9, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    other = sf.StackelbergAdam(saved.named_parameters(), lr=0.1)
    for p in saved.parameters():
        p.grad = torch.ones_like(p)
    other.step()
    optimizer.load_state_dict(other.state_dict())
    before = [p.detach().clone() for p in _seen(model).parameters()]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'0.weight' .*exp_avg of shape \(4, 9\)"):
            _train(model, optimizer, range(1))
    for p, q in zip(model.parameters(), before, strict=True):
        assert_same_bits(p, q)


def test_no_step_before_the_first_forward() -> None:
    optimizer = sf.StackelbergAdamW(nn.LazyLinear(3).parameters())
    optimizer.step()
    assert (optimizer.launches, len(optimizer.state)) == (0, 0)
    assert optimizer.backend == "none"
