"""Narrow steps, computed in their windows only: what all neurons at all points give."""

from __future__ import annotations

import pytest
import torch
from cases import normal
from stackelberg_fused.benchmarks.experiments.neuron_features import (
    Features,
    SortedPoints,
    StepFeatures,
)
from stackelberg_fused.benchmarks.experiments.neuron_networks import smooth_step
from torch import Tensor

WIDTH = 0.02
SETTINGS, SEEDS, DIMENSIONS, NEURONS, POINTS = 2, 3, 4, 6, 700


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def both() -> tuple[StepFeatures, Features]:
    """Return the same networks' features: in windows, and everywhere in float64."""
    x = random(SEEDS, DIMENSIONS, POINTS)
    positions = 1.2 * random(SETTINGS, SEEDS, DIMENSIONS * NEURONS) - 0.1
    # two at one place; at both ends; far outside, where a diverging network has them
    positions[0, 0, :8] = torch.tensor([0.5, 0.5, 0.0, 1.0, -3.0, 7.0, 1e30, -1e30])
    positions[1, 2, 6:8] = torch.tensor([torch.inf, -torch.inf])
    positions[1, 1, 3] = x[1, 0, 5]  # at a point
    neuron = smooth_step(WIDTH)
    everywhere = x.double().repeat_interleave(NEURONS, 1) - positions.double()[..., None]
    windows = StepFeatures(neuron, SortedPoints(x, WIDTH), positions)
    return windows, Features(*neuron(everywhere))


def test_outputs_are_those_of_all_neurons_at_all_points() -> None:
    windows, everywhere = both()
    head = normal((SETTINGS, SEEDS, DIMENSIONS * NEURONS), 1)
    found, expected = windows.outputs(head), everywhere.outputs(head.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_gradients_are_those_of_all_neurons_at_all_points() -> None:
    windows, everywhere = both()
    head = normal((SETTINGS, SEEDS, DIMENSIONS * NEURONS), 1)
    pull = normal((SETTINGS, SEEDS, POINTS), 2)
    weights = head.shape[-1]
    torch.testing.assert_close(
        windows.head_gradient(pull, weights).double(),
        everywhere.head_gradient(pull.double(), weights),
        rtol=0,
        atol=1e-4,
    )
    torch.testing.assert_close(
        windows.body_gradient(pull, head).double(),
        everywhere.body_gradient(pull.double(), head.double()),
        rtol=1e-3,  # a slope is 1 / width times the rounding of x - u
        atol=1e-2,
    )


def test_the_neurons_of_one_network() -> None:
    windows, everywhere = both()
    for setting in range(SETTINGS):
        for seed in range(SEEDS):
            found = windows.network(setting, seed)
            torch.testing.assert_close(found, everywhere.values[setting, seed], rtol=0, atol=1e-4)
            assert found.dtype == torch.float64


def test_more_points_in_a_neurons_width_than_a_window_holds_are_refused() -> None:
    x = random(1, 1, POINTS)
    window = SortedPoints(x, WIDTH).window
    assert window < POINTS / 10
    x[..., :window] = 0.5 + 0.2 * WIDTH * random(window)
    with pytest.raises(ValueError, match=f"more than {window} of them in a width of 0.02"):
        SortedPoints(x, WIDTH)
