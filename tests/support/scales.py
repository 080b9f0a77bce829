"""A problem whose groups want rates four orders of magnitude apart, and a quick search for them."""

from __future__ import annotations

from typing import Any

import torch
from cases import normal
from torch import Tensor, nn

import stackelberg_fused as sf

CURVATURES = {"small": 0.01, "middle": 1.0, "large": 100.0}


class Scales(nn.Module):
    """Three vectors whose curvatures are four orders of magnitude apart."""

    def __init__(self) -> None:
        super().__init__()
        # each with the same part of the loss
        for name, curvature in CURVATURES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(3) / curvature**0.5))


def scales_groups(model: nn.Module) -> list[dict[str, Any]]:
    return [{"params": [p], "name": name} for name, p in model.named_parameters()]


def curved(model: Any, batch: Tensor) -> Tensor:
    parts = [
        curvature * (getattr(model, name) + 1e-3 * batch).square().sum()
        for name, curvature in CURVATURES.items()
    ]
    return torch.stack(parts).sum()


BATCHES = [normal((3,), i) for i in range(4)]


def search_scales(**how: Any) -> sf.RateSearch:
    settings = {
        "groups": scales_groups,
        "optimizer": sf.StackelbergSGD,
        "lrs": (1e-4, 100.0),
        "budget": 25,
        "steps": 15,
        "tuning_seeds": 2,
        "seeds": 6,
        **how,
    }
    return sf.find_rates(Scales, BATCHES, curved, **settings)
