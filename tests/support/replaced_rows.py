"""Optimizers whose first parameter is replaced by one of other rows, and surgery by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from backends import chosen
from cases import normal
from checks import all_params
from torch import Tensor, nn

import stackelberg_fused as sf

WIDTH = 150  # of a row: two blocks of 8 bits, of which one is not full
ROWS = [4, -1, 0, 5, 0]


class Kind(NamedTuple):
    """A class, the dtype of its parameters, and settings."""

    optimizer: Callable[..., Any]
    dtype: torch.dtype
    settings: dict[str, Any]


ADAM, NARROW, WIDE = sf.StackelbergAdamW, torch.bfloat16, torch.float32
MEAN = {"update_every": 2, "update_every_grads": "mean"}
KINDS = {
    "Adam": Kind(sf.StackelbergAdam, WIDE, {"amsgrad": True}),
    "average and turns": Kind(ADAM, WIDE, {"ema_decay": 0.9, **MEAN}),
    "momentum": Kind(sf.StackelbergSGD, WIDE, {"momentum": 0.9, "dampening": 0.5}),
    "state of 16 bits": Kind(ADAM, WIDE, {"state_dtype": "bfloat16", "amsgrad": True}),
    "state of 8 bits": Kind(ADAM, WIDE, {"state_dtype": "8bit", "ema_decay": 0.9}),
    "momentum of 8 bits": Kind(
        sf.StackelbergSGD, NARROW, {"momentum": 0.9, "state_dtype": "8bit", "master": "split8"}
    ),
    "nearest": Kind(ADAM, NARROW, {"ema_decay": 0.9}),
    "kahan": Kind(ADAM, NARROW, {"master": "kahan"}),
    "split16": Kind(ADAM, NARROW, {"master": "split16", "ema_decay": 0.9}),
    "split8": Kind(ADAM, NARROW, {"master": "split8"}),
    "float32 master": Kind(ADAM, NARROW, {"master": "fp32", "state_dtype": "8bit"}),
    "stochastic": Kind(ADAM, NARROW, {"master": "stochastic", "state_dtype": "bfloat16"}),
    "counts on the device": Kind(ADAM, WIDE, {"capturable": True, **MEAN}),
    "float64": Kind(ADAM, torch.float64, {"ema_decay": 0.9}),
}
by_kind = pytest.mark.parametrize("kind", KINDS)


def optimizer_of(kind: str, backend: str = "cpu", first: Tensor | None = None, **more: Any) -> Any:
    """A matrix and a vector, and a vector that is the head."""
    instance, device = chosen(backend)
    cls, dtype, settings = KINDS[kind]
    if dtype is torch.float64 and backend != "reference":
        pytest.skip("float64 is the reference's")
    params = [
        nn.Parameter(normal(s, i).to(device, dtype)) for i, s in enumerate([(6, WIDTH), (5,), (4,)])
    ]
    if first is not None:
        params[0] = nn.Parameter(first.clone())
    groups = [{"params": params[:2]}, {"params": params[2:], "role": "head", "lr": 0.2}]
    return cls(groups, lr=0.1, backend=instance, **{**settings, **more})


def by_rows(value: Tensor, begin: Tensor, rows: list[int] = ROWS) -> Tensor:
    """What surgery by hand makes of a tensor of the state: row by row."""
    made = [value[row] if row >= 0 else begin[i].to(value.dtype) for i, row in enumerate(rows)]
    return torch.stack(made) if made else value[:0].clone()


def new_weights(old: Tensor, rows: list[int] = ROWS) -> Tensor:
    fresh = normal((len(rows), *old.shape[1:]), 99).to(old)
    return by_rows(old.detach(), fresh, rows)


def replace(optimizer: Any, rows: Any = ROWS, index: int = 0) -> nn.Parameter:
    old = all_params(optimizer)[index]
    new = nn.Parameter(new_weights(old, list(rows)))
    optimizer.replace(old, new, rows)
    return new
