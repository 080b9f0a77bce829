"""Parameters of fewer bits for the tests: values of many magnitudes, and all that an optimizer stores."""

from __future__ import annotations

from typing import Any

import torch
from cases import normal
from torch import Tensor

SPECIAL = [
    0.0,
    -0.0,
    1e-45,
    -3e-40,
    1.2e-38,
    1e-23,
    -1e20,
    3e38,
    torch.inf,
    -torch.inf,
    torch.nan,
    6e-8,
    65520.0,
]


def values(size: tuple[int, ...], seed: int, special: bool = False) -> Tensor:
    """Of many magnitudes within a block."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.empty(size).uniform_(-6, 2, generator=generator)
    x = normal(size, seed) * 10**spread
    if special and x.numel():
        flat = x.view(-1)
        at = torch.randperm(len(flat), generator=generator)[: len(SPECIAL)]
        flat[at] = torch.tensor(SPECIAL)[: len(at)]
    return x


def tensors(optimizer: Any) -> dict[str, Tensor]:
    found = {}
    for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        found[f"parameter {i}"] = p.detach().cpu()
        found |= {f"{n} of {i}": v.cpu() for n, v in optimizer.state[p].items()}
    return found
