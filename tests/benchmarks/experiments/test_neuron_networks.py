"""Neurons with positions: their formula, the gradients of both players, and the best head."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import normal
from stackelberg_fused.benchmarks.experiments.neuron_networks import (
    best_head,
    body_gradient,
    head_gradient,
    outputs,
    relu,
    smooth_step,
)
from torch import Tensor

WIDTH = 0.25
# at both ends, at the middle and beyond
DISTANCES = torch.tensor([-1, -0.5001, -0.5, -0.4, -0.1, 0, 0.1, 0.3, 0.5, 0.5001, 2]) * WIDTH


def published(x: Tensor) -> Tensor:
    """The neuron as the paper's code has it."""
    return (4 * (x + 0.5) ** 3).clip(0, 0.5) + (0.5 - 4 * (0.5 - x) ** 3).clip(0, 0.5)


def test_the_neuron_is_the_published_one() -> None:
    distance = DISTANCES.double().requires_grad_()
    expected = published(distance / WIDTH)
    value, slope = smooth_step(WIDTH)(distance.detach())
    torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-15)
    inside = distance.detach().abs() != WIDTH / 2  # clip has two slopes there
    (derivative,) = torch.autograd.grad(expected.sum(), distance)
    at_middle = distance.detach() == 0  # autograd adds up both clips' slopes, or neither
    exact = torch.where(at_middle, torch.full_like(derivative, 3 / WIDTH), derivative)
    torch.testing.assert_close(slope[inside], exact[inside], rtol=1e-12, atol=1e-12)
    # exactly: it is a step outside its width
    assert value[0] == 0
    assert value[-1] == 1


def squared(out: Tensor, targets: Tensor) -> Tensor:
    return (out - targets).square().sum()


def norm(out: Tensor, targets: Tensor) -> Tensor:
    return torch.linalg.vector_norm(out - targets)


@pytest.mark.parametrize("loss", [squared, norm])
@pytest.mark.parametrize(
    "neuron, value",
    [(smooth_step(WIDTH), lambda d: published(d / WIDTH)), (relu, torch.relu)],
    ids=["step", "relu"],
)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_of_both_players(
    loss: Callable[[Tensor, Tensor], Tensor],
    neuron: Callable[[Tensor], tuple[Tensor, Tensor]],
    value: Callable[[Tensor], Tensor],
    bias: bool,
) -> None:
    """Against autograd."""
    x, targets = torch.linspace(0, 1, 30).double(), normal((30,), 1).double()
    positions = (torch.arange(6).double() / 6 + 0.013).requires_grad_()
    head = normal((6 + bias,), 2).double().requires_grad_()
    out = outputs(value(x - positions[:, None]), head)
    wanted = torch.autograd.grad(loss(out, targets), (positions, head))
    with torch.no_grad():
        features, slopes = neuron(x - positions[:, None])
        at = outputs(features, head).requires_grad_()
    (pull,) = torch.autograd.grad(loss(at, targets), at)
    found = body_gradient(slopes, pull, head.detach()), head_gradient(features, pull, 6 + bias)
    for mine, exact in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("bias", [False, True])
def test_no_head_is_better_than_the_best(bias: bool) -> None:
    x, targets = torch.linspace(0, 1, 200), normal((3, 200), 1)
    positions = torch.rand(3, 7, generator=torch.Generator().manual_seed(3))
    features = smooth_step(WIDTH)(x - positions[..., None])[0]
    best = best_head(features, targets, bias)
    error = (outputs(features, best) - targets).square().sum(-1)
    columns = torch.cat([features, torch.ones(3, bias, 200)], -2).mT.double()
    expected = torch.linalg.lstsq(columns, targets.double()[..., None]).solution[..., 0]
    torch.testing.assert_close(best, expected.float(), rtol=1e-3, atol=1e-3)
    for seed in range(20):
        other = best + 0.01 * normal(tuple(best.shape), seed)
        assert ((outputs(features, other) - targets).square().sum(-1) > error).all()


def test_neurons_at_one_place_or_outside_have_a_best_head() -> None:
    x, targets = torch.linspace(0, 1, 200), normal((200,), 1)
    positions = torch.tensor([0.3, 0.3, 0.6, 7.0])
    features = smooth_step(WIDTH)(x - positions[:, None])[0]
    best = best_head(features[None], targets[None], True)[0]
    assert best.isfinite().all()
    alone = best_head(features[None, [0, 2]], targets[None], True)[0]
    torch.testing.assert_close(
        outputs(features, best), outputs(features[[0, 2]], alone), rtol=1e-3, atol=1e-3
    )
