"""Two models that were trained by the same trainer, one with our optimizer and one with torch's."""

from __future__ import annotations

from typing import Any

import torch
from checks import assert_same_bits, assert_same_state
from tolerances import IN_TRAINERS
from torch import nn


def small_net() -> nn.Sequential:
    """[n, 4] to [n, 2]; the same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def small_batches(count: int = 8, size: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs [size, 4] and targets [size, 2]; the same at every call."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, size, 4, generator=random)
    return list(zip(inputs, inputs[..., :2].sin() + inputs[..., 2:], strict=True))


def assert_close_weights(model: nn.Module, expected: nn.Module) -> None:
    pairs = zip(model.named_parameters(), expected.parameters(), strict=True)
    for (name, param), other in pairs:
        torch.testing.assert_close(param, other, **IN_TRAINERS, msg=lambda m, n=name: f"{n}: {m}")


def assert_same_weights(model: nn.Module, expected: nn.Module) -> None:
    pairs = zip(model.named_parameters(), expected.parameters(), strict=True)
    for (name, param), other in pairs:
        assert_same_bits(param, other, name)


def assert_same_run(model: nn.Module, optimizer: Any, expected: nn.Module, other: Any) -> None:
    """Weights and the optimizers' state, to the bit."""
    assert_same_weights(model, expected)
    for param, twin in zip(model.parameters(), expected.parameters(), strict=True):
        assert optimizer.state[param]
        assert_same_state(optimizer.state[param], other.state[twin])
