"""Linear heads and data for the follower's problem."""

from __future__ import annotations

import torch
from cases import normal
from torch import Tensor, nn

INPUTS, OUTPUTS = 6, 4


def linear(bias: bool = True) -> nn.Linear:
    head = nn.Linear(INPUTS, OUTPUTS, bias)
    with torch.no_grad():
        for number, p in enumerate(head.parameters()):
            p.copy_(normal(tuple(p.shape), 50 + number))
    return head


def features_and_targets(loss: str, rows: int = 40) -> tuple[Tensor, Tensor]:
    features = normal((rows, INPUTS), 1)
    if loss == "mse":
        return features, normal((rows, OUTPUTS), 2)
    return features, (features[:, 0] > 0) + 2 * (normal(rows, 3) > 0).long()
