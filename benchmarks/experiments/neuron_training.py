"""Training of many networks at once through `StackelbergSGD`: every pair of rates is two param groups.

A group holds the positions, or the heads, of all seeds at one setting, so that one launch moves every network.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...optimizers.sgd import StackelbergSGD
from .neuron_problems import Problem

MODES = ("simultaneous", "alternating", "exact head")  # of `Arm.mode`
MOMENTS = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of a run, at which the loss is taken
CACHED = 200_000  # numbers of an intermediate result that stay in a core's cache

Rates = tuple[float, float]


class Networks:
    """The networks of some seeds at several settings, and the optimizer that moves them.

    Args:
        rates: of body and head, for each setting.
    """

    def __init__(self, problem: Problem, seeds: Sequence[int], rates: Sequence[Rates]) -> None:
        generators = [Generator().manual_seed(seed) for seed in seeds]
        starts = [problem.start(generator) for generator in generators]
        self.positions = torch.stack([u for u, _ in starts]).repeat(len(rates), 1, 1)
        self.head = torch.stack([a for _, a in starts]).repeat(len(rates), 1, 1)
        self.data = problem.data(generators)
        self._gradients = {
            "body": torch.zeros_like(self.positions),
            "head": torch.zeros_like(self.head),
        }
        groups: list[dict[str, Any]] = []
        for index, pair in enumerate(rates):
            for role, values, lr in zip(
                ("body", "head"), (self.positions, self.head), pair, strict=True
            ):
                p = nn.Parameter(values[index])  # a view: a step moves self.positions, self.head
                p.grad = self._gradients[role][index]
                groups.append({"params": [p], "lr": lr, "role": role})
        with warnings.catch_warnings():
            # about a body faster than the head: the groups belong to different games
            warnings.simplefilter("ignore")
            self._optimizer = StackelbergSGD(groups, flatten=False)

    @torch.no_grad()
    def step(self, mode: str) -> None:
        """Make one step of every network."""
        data, gradients = self.data, self._gradients
        data.next_step()
        features = data.features(self.positions)
        if mode == "exact head":
            self.head.copy_(data.exact_head(self.positions))
        pull = data.pull(features.outputs(self.head))
        if mode != "exact head":
            gradients["head"].copy_(features.head_gradient(pull, self.head.shape[-1]))
        if mode == "alternating":
            self._optimizer.step(role="head")
            pull = data.pull(features.outputs(self.head))
        gradients["body"].copy_(features.body_gradient(pull, self.head))
        self._optimizer.step(role=None if mode == "simultaneous" else "body")

    @torch.no_grad()
    def loss(self, mode: str) -> Tensor:
        """Return the loss that is reported, [settings, seeds], infinite where it is not finite."""
        if mode == "exact head":
            self.head.copy_(self.data.exact_head(self.positions))
        loss = self.data.loss(self.positions, self.head)
        return torch.where(loss.isfinite(), loss, math.inf)


def train(
    problem: Problem, mode: str, seeds: Sequence[int], rates: Sequence[Rates]
) -> list[dict[str, Any]]:
    """Train all seeds at each pair of rates.

    Returns:
        For each pair: "losses", at each of MOMENTS the losses of all seeds; "positions" and "head" of all seeds at the
        end. The results of a pair and a seed are those that they have alone.
    """
    at_once = max(1, CACHED // (len(seeds) * problem.size))
    results = []
    for first in range(0, len(rates), at_once):
        results += _train(problem, mode, seeds, rates[first : first + at_once])
    return results


def _train(
    problem: Problem, mode: str, seeds: Sequence[int], rates: Sequence[Rates]
) -> list[dict[str, Any]]:
    networks = Networks(problem, seeds, rates)
    moments = {max(1, round(part * problem.steps)) for part in MOMENTS}
    losses = []
    for step in range(1, problem.steps + 1):
        networks.step(mode)
        if step in moments:
            losses.append(networks.loss(mode))
    by_setting = (torch.stack(losses, 1), networks.positions, networks.head)
    return [
        {"losses": curve, "positions": u, "head": a}
        for curve, u, a in zip(*(values.tolist() for values in by_setting), strict=True)
    ]
