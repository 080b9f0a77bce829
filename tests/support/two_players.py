"""An optimizer of two parameters, the body's and the head's, for tests of players."""

from __future__ import annotations

from typing import Any

import torch
from backends import chosen
from cases import normal
from torch import nn

import stackelberg_fused as sf


def sgd_of_two(backend: str = "cpu", **more: Any) -> Any:
    """SGD of a body group and a head group, of one matrix each."""
    instance, device = chosen(backend)
    body, head = (nn.Parameter(normal((5, 3), i).to(device)) for i in range(2))
    groups = [{"params": [body]}, {"params": [head], "role": "head"}]
    return sf.StackelbergSGD(groups, lr=0.5, backend=instance, **more)


def fill(optimizer: Any, body: float = 1.0, head: float = 1.0) -> None:
    """Set all elements of each gradient to one value."""
    for group, value in zip(optimizer.param_groups, (body, head), strict=True):
        for p in group["params"]:
            p.grad = torch.full_like(p, value)


def values_of(optimizer: Any) -> list[torch.Tensor]:
    """Copies of the parameters."""
    return [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
