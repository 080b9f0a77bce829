"""Models whose averages another module takes, and the same by hand in plain torch."""

from __future__ import annotations

import math
from typing import Any

import torch
from cases import normal
from checks import assert_same_bits
from torch import nn

import stackelberg_fused as sf

STEPS = 6


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def model_with_norm() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def cosine_to_one(step: int, base: float = 0.9, steps: int = STEPS - 1) -> float:
    """BYOL's: from `base` to 1, which it reaches."""
    return 1.0 - (1.0 - base) * (1.0 + math.cos(math.pi * min(step, steps) / steps)) / 2.0


def adam_of(model: nn.Module, backend: Any = "cpu", **more: Any) -> Any:
    return sf.StackelbergAdam(model.parameters(), lr=0.1, backend=backend, **more)


def backward_of(model: nn.Module, number: int) -> None:
    device = next(model.parameters()).device
    model(normal((4, 3), number).to(device)).square().sum().backward()


def take_step(model: nn.Module, optimizer: Any, number: int, **how: Any) -> None:
    backward_of(model, number)
    optimizer.step(**how)
    optimizer.zero_grad()


@torch.no_grad()
def averaged_by_hand(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """What codes of BYOL, DINO and DQN do after each step."""
    for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs, 1.0 - decay)


def assert_same_state(one: nn.Module, other: nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        assert_same_bits(tensor, other.state_dict()[name])


def growing_decay(step: int) -> float:
    return 0.5 + 0.1 * step
