"""Two-layer networks whose neurons have positions: f(x) = bias + sum_j a_j neuron(x_j - u_j).

Positions u are the body, weights a and the bias the head. Many networks are computed at once: positions
[settings, seeds, neurons] and heads [settings, seeds, weights], where a setting is a pair of rates; a head with one
weight more than there are neurons ends with the bias. No operation mixes two networks, and what one network computes
does not depend, to the bit, on how many others there are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

RIDGE = 1e-9  # of the exact head, relative to the mean of the Gram matrix's diagonal

Neuron = Callable[[Tensor], tuple[Tensor, Tensor]]


def smooth_step(width: float) -> Neuron:
    """Return the neuron s(x / width) with its derivative; s rises from 0 at -1/2 to 1 at 1/2.

    s(x) = clip(4 (x + 1/2)^3, 0, 1/2) + clip(1/2 - 4 (1/2 - x)^3, 0, 1/2) (Marion & Berthier 2023). That is 4 t^3 left
    of 0 and 1 - 4 t^3 right of it, with t = max(1/2 - |x|, 0).
    """

    def neuron(distance: Tensor) -> tuple[Tensor, Tensor]:
        x = distance / width
        t = (0.5 - x.abs()).clamp_(min=0.0)
        square = t * t
        tail = square * t * 4.0
        # tail left of 0 and 1 - tail right of it, faster than torch.where
        return torch.copysign(0.5 - tail, x).add_(0.5), square.mul_(12.0 / width)

    return neuron


def relu(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Return max(distance, 0) and its derivative."""
    return distance.relu(), (distance > 0).to(distance.dtype)


def outputs(features: Tensor, head: Tensor) -> Tensor:
    """Return what networks with these features [..., neurons, points] say at each point, [..., points]."""
    neurons = features.shape[-2]
    out = (head[..., :neurons, None] * features).sum(-2)
    return out + head[..., neurons:] if head.shape[-1] > neurons else out


def head_gradient(features: Tensor, pull: Tensor, weights: int) -> Tensor:
    """Return a loss's gradient by the head, [..., weights].

    Args:
        pull: the loss's derivative by each output, [..., points].
    """
    gradient = (features * pull[..., None, :]).sum(-1)
    if weights > features.shape[-2]:
        gradient = torch.cat([gradient, pull.sum(-1, keepdim=True)], -1)
    return gradient


def body_gradient(slopes: Tensor, pull: Tensor, head: Tensor) -> Tensor:
    """Return a loss's gradient by the positions, [..., neurons]; slopes are the neurons' derivatives."""
    neurons = slopes.shape[-2]
    return -head[..., :neurons] * (slopes * pull[..., None, :]).sum(-1)


def best_head(features: Tensor, targets: Tensor, bias: bool) -> Tensor:
    """Return the heads [..., weights] of the smallest squared error, by normal equations in float64.

    Args:
        features: [networks..., neurons, points].
        targets: [networks..., points].
    """
    if bias:
        features = torch.cat([features, torch.ones_like(features[..., :1, :])], -2)
    features, targets = features.double(), targets.double()
    # one product for each network: how a batched one rounds depends on the size of the batch
    grams = [f @ f.T for f in features.flatten(0, -3)]
    moments = [f @ y for f, y in zip(features.flatten(0, -3), targets.flatten(0, -2), strict=True)]
    gram = torch.stack(grams)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    # two neurons at one place, or one outside the data, would leave nothing to divide by
    diagonal += RIDGE * diagonal.mean(-1, keepdim=True).clamp(min=1e-30)
    solution, _ = torch.linalg.solve_ex(gram, torch.stack(moments)[..., None])
    return solution.float().reshape(features.shape[:-1])
