"""The data of the neurons experiment: targets, and the points of each step.

Every seed has its own data, the same for all settings and modes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor

from .neuron_features import Features, Seen, SortedPoints, StepFeatures
from .neuron_networks import Neuron, best_head, outputs, smooth_step

LEVEL_1D, STEPS_1D, JUMPS_1D = 1.0, (0.2, 0.35, 0.5, 0.65, 0.8), (4.0, -4.0, 2.0, -2.0, 4.0)
STEPS = (0.3, 0.5, 0.7)  # in each of several coordinates
TEACHER = ((0.3, 1.0), (0.5, -2.0), (0.7, 3.0))  # positions and weights
WIDTH_1D, WIDTH = 4e-3, 1e-2  # of the neurons, in one dimension and in several
LOSS_POINTS = 4000  # of the integral over [0, 1] that is reported
HEAD_POINTS = 1000  # of the integral that the exact head minimises
DRAWN_AT_ONCE = 1000  # steps


def target_1d(x: Tensor) -> Tensor:
    """Return the target with five steps, in the shape of x."""
    y = torch.full_like(x, LEVEL_1D)
    for step, jump in zip(STEPS_1D, JUMPS_1D, strict=True):
        y += jump * (x > step)
    return y


def target_steps(x: Tensor) -> Tensor:
    """Return the number of steps left of each coordinate, summed: [..., points] of [..., dimensions, points]."""
    return torch.stack([(x > step).sum(-2) for step in STEPS]).sum(0).float()


def teacher(x: Tensor) -> Tensor:
    """Return the sum of three ReLU, [..., points] of [..., 1, points]."""
    return torch.stack([a * (x - u).relu() for u, a in TEACHER]).sum(0).squeeze(-2)


class Data(ABC):
    """The points of some seeds.

    Attributes:
        neuron: of the networks.
        x: the coordinate at each point of this step that each neuron sees, broadcast to [seeds, neurons, points].
        y: the targets at this step, [seeds, points].
    """

    neuron: Neuron
    x: Tensor
    y: Tensor

    def next_step(self) -> None:  # noqa: B027 - the points need not change
        """Go on to the points of the next step."""

    def features(self, positions: Tensor) -> Seen:
        """Return what networks with these positions see at this step, [settings, seeds, neurons]."""
        return Features(*self.neuron(self.x - positions[..., None]))

    @abstractmethod
    def pull(self, out: Tensor) -> Tensor:
        """Return the derivative of this step's loss by the outputs, [settings, seeds, points]."""

    @abstractmethod
    def loss(self, positions: Tensor, head: Tensor) -> Tensor:
        """Return the loss that is reported, [settings, seeds]."""

    @abstractmethod
    def exact_head(self, positions: Tensor) -> Tensor:
        """Return the heads that minimise that loss, [settings, seeds, weights]."""


class Stream(Data):
    """One new point a step, with noise of +-1 on its target: the squared error there.

    The loss that is reported is the mean squared error over [0, 1], without noise.
    """

    neuron = staticmethod(smooth_step(WIDTH_1D))

    def __init__(self, generators: Sequence[Generator]) -> None:
        self._generators = generators
        self._next = DRAWN_AT_ONCE
        self._grid = midpoints(HEAD_POINTS)
        self._wanted = target_1d(self._grid)
        self._solved = torch.empty(0)  # the positions that the heads belong to
        self._heads = torch.empty(0)

    def next_step(self) -> None:
        if self._next == DRAWN_AT_ONCE:
            draws = [torch.rand(DRAWN_AT_ONCE, 2, generator=g) for g in self._generators]
            drawn = torch.stack(draws, 1)  # [steps, seeds, 2]
            self._x = drawn[..., :1].contiguous()
            self._y = target_1d(self._x) + 2 * drawn[..., 1:] - 1
            self._next = 0
        self.x, self.y = self._x[self._next, :, None], self._y[self._next]
        self._next += 1

    def pull(self, out: Tensor) -> Tensor:
        return 2 * (out - self.y)

    def loss(self, positions: Tensor, head: Tensor) -> Tensor:
        x = midpoints(LOSS_POINTS)
        rows = [
            (outputs(self.neuron(x - u[..., None])[0], a) - target_1d(x)).square().mean(-1)
            for u, a in zip(positions, head, strict=True)  # one setting at a time: memory
        ]
        return torch.stack(rows)

    def exact_head(self, positions: Tensor) -> Tensor:
        # one point moves few neurons: only networks that have moved are solved again
        if self._solved.shape != positions.shape:
            self._solved = torch.full_like(positions, torch.nan)
            self._heads = positions.new_empty(*positions.shape[:-1], positions.shape[-1] + 1)
        moved = (positions != self._solved).any(-1)
        if bool(moved.any()):
            u = positions[moved]
            features = self.neuron(self._grid - u[..., None])[0]
            self._heads[moved] = best_head(features, self._wanted.expand(len(u), -1), bias=True)
            self._solved[moved] = u
        return self._heads


class Batch(Data):
    """The same points at every step: the norm of the errors by the number of points.

    Args:
        per_dimension: the number of neurons that see one coordinate.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        neuron: Neuron,
        target: Callable[[Tensor], Tensor],
        dimensions: int,
        points: int = 1000,
        per_dimension: int = 10,
    ) -> None:
        self.neuron = neuron
        x = torch.stack([torch.rand(dimensions, points, generator=g) for g in generators])
        self.y = target(x)
        self.x = x.repeat_interleave(per_dimension, 1)

    def pull(self, out: Tensor) -> Tensor:
        error = out - self.y
        norm = torch.linalg.vector_norm(error, dim=-1, keepdim=True).clamp_(min=1e-30)
        return error / (norm * error.shape[-1])

    def loss(self, positions: Tensor, head: Tensor) -> Tensor:
        errors = [
            outputs(self.neuron(self.x - u[..., None])[0], a) - self.y
            for u, a in zip(positions, head, strict=True)  # one setting at a time: memory
        ]
        return torch.linalg.vector_norm(torch.stack(errors), dim=-1) / self.y.shape[-1]

    def exact_head(self, positions: Tensor) -> Tensor:
        features = self.neuron(self.x - positions[..., None])[0]
        return best_head(features, self.y.expand(*features.shape[:2], -1), bias=False)


class Steps(Batch):
    """A batch for narrow steps in many dimensions, of which only the windows are computed.

    Args:
        width: of the neurons.
    """

    def __init__(
        self,
        generators: Sequence[Generator],
        width: float,
        dimensions: int,
        points: int,
    ) -> None:
        self.neuron = smooth_step(width)
        x = torch.stack([torch.rand(dimensions, points, generator=g) for g in generators])
        self.y = target_steps(x)
        self.x = x
        self._sorted = SortedPoints(x, width)

    def features(self, positions: Tensor) -> StepFeatures:
        return StepFeatures(self.neuron, self._sorted, positions)

    def loss(self, positions: Tensor, head: Tensor) -> Tensor:
        error = self.features(positions).outputs(head) - self.y
        return torch.linalg.vector_norm(error, dim=-1) / error.shape[-1]

    def exact_head(self, positions: Tensor) -> Tensor:
        features = self.features(positions)
        heads = [
            best_head(features.network(setting, seed)[None], y[None], bias=False)[0]
            for setting in range(len(positions))  # one network at a time: memory
            for seed, y in enumerate(self.y)
        ]
        return torch.stack(heads).view(positions.shape)


def midpoints(count: int) -> Tensor:
    """Return the middles of equal parts of [0, 1]."""
    return (torch.arange(count) + 0.5) / count
