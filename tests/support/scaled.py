"""Steps under a gradient scaler, some of which overflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Options, set_gradients
from checks import all_params

import stackelberg_fused as sf

SCALE = 1024.0
ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
SCALERS = (sf.GradScaler, torch.amp.GradScaler)
STEPS, OVERFLOWS = 7, (0, 3)  # also the very first step
by_fused = pytest.mark.parametrize("fused", [None, True])


def new_scaler(cls: Any, device: str = "cpu", **how: Any) -> Any:
    scaler = cls(device, **{"init_scale": SCALE, "growth_interval": 2, **how})
    scaler.scale(torch.zeros((), device=device))  # creates its tensors
    return scaler


def set_scaled_gradients(optimizer: Any, number: int, scale: float) -> None:
    """Gradients of a scaled loss; one element of one of them is infinite in the steps that overflow."""
    set_gradients(optimizer.param_groups, number, 3 if number % 3 == 1 else 0)
    with_gradient = [p for p in all_params(optimizer) if p.grad is not None and p.numel()]
    for p in with_gradient:
        p.grad.mul_(scale)
    if number in OVERFLOWS:
        with_gradient[number % len(with_gradient)].grad.view(-1)[-1] = (torch.inf, torch.nan)[
            number % 2
        ]


def train_scaled(
    cls: Any, *optimizers: Any, between: Callable[..., None] | None = None, **how: Any
) -> Any:
    """Steps under one scaler, some of them skipped; returns the scales."""
    scaler, scales = new_scaler(cls, all_params(optimizers[0])[0].device.type), []
    for number in range(STEPS):
        for optimizer in optimizers:
            set_scaled_gradients(optimizer, number, scaler.get_scale())
        for optimizer in optimizers:
            if between is not None:
                between(scaler, optimizer)
            scaler.step(optimizer, **how)
        scaler.update()
        scales.append(scaler.get_scale())
    steps = [after / before for before, after in zip([SCALE, *scales], scales, strict=False)]
    assert {0.5, 2.0} <= set(steps)
    return scales
