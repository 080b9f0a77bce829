"""The problems of the neurons experiment: what counts as recovered, and the starts."""

from __future__ import annotations

import pytest
import torch
from stackelberg_fused.benchmarks.experiments.neuron_data import (
    midpoints,
    target_1d,
    target_steps,
    teacher,
)
from stackelberg_fused.benchmarks.experiments.neuron_problems import PROBLEMS

BY_NAME = {problem.name: problem for problem in PROBLEMS}


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", BY_NAME)
def test_the_threshold_is_a_hundredth_of_the_targets_variance(name: str) -> None:
    x = midpoints(100_000)
    y = {
        "1-D": lambda: target_1d(x),
        "2-D": lambda: target_steps(torch.cartesian_prod(x[::200], x[::200]).T),
        "10-D": lambda: target_steps(torch.rand(10, 100_000, generator=generators(1)[0])),
        "ReLU": lambda: teacher(x[None]),
    }[name]()
    problem = BY_NAME[name]
    assert problem.variance == pytest.approx(float(y.var()), rel=0.01)
    mean_square = torch.tensor(problem.variance / 100)
    if problem.points is None:
        assert problem.recovered == pytest.approx(float(mean_square))
    else:
        errors = mean_square.sqrt().expand(problem.points)
        assert problem.recovered == pytest.approx(float(errors.norm()) / problem.points, rel=1e-4)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_neuron_starts_at_a_point_of_the_data(name: str) -> None:
    """The start and the data are drawn from one generator, one after the other."""
    (generator,) = generators(5)
    positions, head = BY_NAME[name].start(generator)
    data = BY_NAME[name].data([generator])
    data.next_step()
    by_chance = len(positions) * data.x.numel() / 2**24  # float32 has no more numbers there
    assert int(torch.isin(positions, data.x).sum()) <= 5 * by_chance
    assert positions.min() >= 0
    assert positions.max() <= 1
    assert len(head) == len(positions) + (name == "1-D")
