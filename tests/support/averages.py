"""Optimizers that keep averages of the weights, and what these have to be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from backends import chosen
from cases import (
    MIXED,
    Options,
    groups_of,
    kernel_options,
    set_gradients,
    sizes_for,
)
from checks import all_params, assert_close, assert_same_bits
from tolerances import Tolerance
from torch import Tensor

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
OPTIONS = [*kernel_options(), MIXED]
DECAYS = (0.0, 0.5, 0.999)
NEAR = Tolerance(2, "max(|ema|, |p|)", "the difference is rounded, and what it is added to")


def averaging_optimizer(options: Options, backend: str, **more: Any) -> Any:
    instance, device = chosen(backend)
    # a mixed launch with every rule
    groups = groups_of(sizes_for(13 if options.mixed else 3), device, mixed=options.mixed)
    return options.ours(groups, backend=instance, **more)


def train(*optimizers: Any, steps: range = range(3), **how: Any) -> Any:
    """The same gradients to all; every other step some have none."""
    for number in steps:
        for optimizer in optimizers:
            set_gradients(optimizer.param_groups, number, 3 if number % 2 else 0)
            optimizer.step(**how)
    return optimizers[0]


def averages(optimizer: Any) -> list[Tensor]:
    return [optimizer.state[p]["ema"] for p in all_params(optimizer)]


def values(optimizer: Any) -> list[Tensor]:
    return [p.detach().clone() for p in all_params(optimizer)]


def without(optimizer: Any, *names: str) -> Any:
    """Return what is left to compare with an optimizer that does not have these."""
    state = {
        p: {k: v for k, v in entry.items() if k not in names}
        for p, entry in optimizer.state.items()
    }
    return SimpleNamespace(param_groups=optimizer.param_groups, state=state)


def assert_all_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_same_bits(a, b, f"parameter {number}")


def assert_averaged(optimizer: Any, old: list[Tensor], decay: float) -> None:
    """The averages are `old` where nothing moved, else a lerp from there to the weights."""
    for p, ema, before in zip(all_params(optimizer), averages(optimizer), old, strict=True):
        if p.grad is None:
            assert_same_bits(ema, before)
            continue
        exact = torch.lerp(before.double(), p.detach().double(), 1 - decay)
        assert_close(ema, exact, torch.maximum(before.abs(), p.detach().abs()), NEAR)
