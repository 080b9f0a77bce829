"""The data of the neurons experiment: targets, samples, losses and exact heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import normal
from stackelberg_fused.benchmarks.experiments import neuron_data as data
from stackelberg_fused.benchmarks.experiments.neuron_networks import outputs
from stackelberg_fused.benchmarks.experiments.neuron_problems import PROBLEMS

BY_NAME = {problem.name: problem for problem in PROBLEMS}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_targets() -> None:
    x = torch.tensor([0.1, 0.3, 0.4, 0.6, 0.7, 0.9])
    assert data.target_1d(x).tolist() == [1, 5, 1, 3, 1, 5]
    points = torch.tensor([[0.1, 0.4, 0.9], [0.2, 0.6, 0.95]])
    assert data.target_steps(points).tolist() == [0, 3, 6]
    taught = data.teacher(torch.tensor([[0.2, 0.4, 0.6, 1.0]]))
    torch.testing.assert_close(taught, torch.tensor([0.0, 0.1, 0.1, 0.6]))


def test_samples_of_the_stream() -> None:
    """Uniform x, and targets with noise that fills -1 to 1 and does not depend on x."""
    stream = data.Stream(generators(1, 2))
    x, noise = [], []
    for _ in range(2 * data.DRAWN_AT_ONCE):
        stream.next_step()
        x.append(stream.x.flatten())
        noise.append((stream.y - data.target_1d(stream.x[..., 0])).flatten())
    samples, noises = torch.stack(x), torch.stack(noise)
    assert not (samples[:, 0] == samples[:, 1]).any()
    assert len(samples[:, 0].unique()) > 1.9 * data.DRAWN_AT_ONCE  # not the same draws again
    assert samples.mean() == pytest.approx(0.5, abs=0.02)
    assert (noises.min(), noises.max()) == (
        pytest.approx(-1, abs=0.01),
        pytest.approx(1, abs=0.01),
    )
    assert noises.var() == pytest.approx(1 / 3, abs=0.02)
    both = torch.corrcoef(torch.stack([samples.flatten(), noises.flatten()]))
    assert abs(float(both[0, 1])) < 0.06


def test_loss_of_the_stream_is_the_integral() -> None:
    """Zero heads leave the target's mean square; neurons at the steps leave their width."""
    stream = data.Stream(generators(1))
    u, a = torch.rand(1, 1, 20), torch.zeros(1, 1, 21)
    assert float(stream.loss(u, a)) == pytest.approx(3.31 + 2.7**2, rel=1e-3)
    u[..., :5] = torch.tensor(data.STEPS_1D)
    a[..., :5], a[..., -1] = torch.tensor(data.JUMPS_1D), data.LEVEL_1D
    left = 2 * 0.5**7 * 16 / 7 * data.WIDTH_1D  # of a neuron of weight 1 around its step
    expected = left * sum(jump**2 for jump in data.JUMPS_1D)
    # 16 of the integral's points lie within a neuron's width
    assert float(stream.loss(u, a)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_exact_head_has_the_smallest_loss(name: str) -> None:
    problem = BY_NAME[name]
    sources = generators(3, 4)
    positions = torch.stack([problem.start(g)[0] for g in sources])[None]
    points: Any = problem.data(sources)
    head = points.exact_head(positions)
    best = points.loss(positions, head)
    for seed in range(10):
        other = head + 0.05 * normal(tuple(head.shape), seed)
        assert (points.loss(positions, other) > best).all()


def test_only_networks_that_moved_are_solved_again() -> None:
    stream, anew = (data.Stream(generators(1)) for _ in range(2))
    positions = torch.rand(3, 2, 20)
    stream.exact_head(positions)
    positions[1, 0, 7] = 0.42
    positions[2, 1, 0] = 0.01
    assert torch.equal(stream.exact_head(positions), anew.exact_head(positions))


def test_pull_of_a_perfect_fit_is_zero() -> None:
    batch: Any = BY_NAME["ReLU"].data(generators(1))
    assert batch.pull(batch.y[None]).eq(0).all()
    features = torch.ones(1, 1, 10, batch.y.shape[-1])
    assert outputs(features, torch.zeros(1, 1, 10)).shape == (1, *batch.y.shape)
