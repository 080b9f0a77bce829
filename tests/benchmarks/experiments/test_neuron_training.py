"""Many networks at once: each as if it were alone, and as torch's SGD trains it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from stackelberg_fused.benchmarks.experiments.neuron_networks import outputs
from stackelberg_fused.benchmarks.experiments.neuron_problems import PROBLEMS, Problem
from stackelberg_fused.benchmarks.experiments.neuron_training import MODES, MOMENTS, Networks, train
from torch import Tensor, nn

SEEDS = (3, 5, 8, 9, 11)
STEPS = 100
POINTS = 1000  # in ten dimensions
BY_NAME = {problem.name: replace(problem, steps=STEPS) for problem in PROBLEMS}
BY_NAME["10-D"] = replace(
    BY_NAME["10-D"],
    steps=STEPS // 2,
    data=partial(BY_NAME["10-D"].data, points=POINTS),
    size=10 * POINTS,
)


def some_rates(problem: Problem) -> list[tuple[float, float]]:
    head = 10.0 ** (problem.head_rates[1] / 2)
    return [(head / 100, head), (head / 1000, head / 10), (head / 10, head / 3)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BY_NAME)
def test_each_network_is_trained_as_if_it_were_alone(name: str, mode: str) -> None:
    """Equal to the bit, whatever other seeds and rates are in the launch."""
    problem = BY_NAME[name]
    rates = some_rates(problem)
    seeds = SEEDS[:3] if name == "10-D" else SEEDS  # for time
    together = train(problem, mode, seeds, rates)
    for pair, found in zip(rates, together, strict=True):
        for place, seed in enumerate(seeds):
            (alone,) = train(problem, mode, (seed,), [pair])
            for quantity in ("positions", "head"):
                assert found[quantity][place] == alone[quantity][0]
            assert [row[place] for row in found["losses"]] == [row[0] for row in alone["losses"]]
    last = together[0]["losses"][-1]
    assert len(set(last)) == len(seeds)  # seeds differ
    assert len(together[0]["losses"]) == len(MOMENTS)


def loss_of(problem: Problem, networks: Networks, positions: Tensor, head: Tensor) -> Tensor:
    """The loss of this step, with a value that autograd knows."""
    x = networks.data.x[0]
    z = x.repeat_interleave(len(positions) // len(x), 0) - positions[:, None]
    if problem.name == "ReLU":
        features = z.relu()
    else:
        x = z / {"1-D": 4e-3, "2-D": 1e-2, "10-D": 1e-2}[problem.name]
        # where a neuron is at a point, autograd would add up the slopes of the published formula's two clips
        left, right = 4 * (x + 0.5).clip(0) ** 3, 1 - 4 * (0.5 - x).clip(0) ** 3
        features = torch.where(x < 0, left, right)
    error = outputs(features, head) - networks.data.y[0]
    return error.square().sum() if problem.name == "1-D" else error.norm() / len(error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_network_is_trained_as_torch_trains_it(name: str, mode: str) -> None:
    problem = BY_NAME[name]
    rates = some_rates(problem)[0]
    networks = Networks(problem, (4,), [rates])
    u, a = (nn.Parameter(v[0, 0].clone()) for v in (networks.positions, networks.head))
    body, head = (torch.optim.SGD([p], lr=lr) for p, lr in zip((u, a), rates, strict=True))
    first = u.detach().clone()

    def differentiate() -> None:
        u.grad = a.grad = None
        loss_of(problem, networks, u, a).backward()

    for _ in range(problem.steps):
        networks.step(mode)
        if mode == "exact head":
            a.data = networks.data.exact_head(u.detach()[None, None])[0, 0]
        differentiate()
        if mode != "exact head":
            head.step()
        if mode == "alternating":
            differentiate()  # the body at the new head
        body.step()
        # a float32 position moves by its slope times some rounding: a network may not drift off
        torch.testing.assert_close(networks.positions[0, 0], u.detach(), rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(networks.head[0, 0], a.detach(), rtol=1e-3, atol=1e-3)
        networks.positions[0, 0], networks.head[0, 0] = u.detach(), a.detach()
    assert not torch.equal(u, first)


def test_seeds_and_samples_are_the_same_in_every_mode_and_setting() -> None:
    """At a rate of almost nothing all runs are one."""
    problem = BY_NAME["1-D"]
    found = [
        train(problem, mode, (7,), [(1e-30, 1e-30), (1e-30, 1e-20)])[0]["losses"][-1]
        for mode in ("simultaneous", "alternating")
    ]
    assert found[0] == found[1]


def test_what_is_not_finite_is_infinitely_bad() -> None:
    (found,) = train(BY_NAME["1-D"], "simultaneous", (1, 2), [(10.0, 1e10)])
    assert found["losses"][-1] == [float("inf")] * 2
