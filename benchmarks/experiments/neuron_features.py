"""What networks see at the points of a step: outputs, and the gradients of both players.

`Features` holds each neuron at each point. `StepFeatures` is for neurons that are narrow steps, each of one coordinate:
among the points sorted by that coordinate, a neuron is 0 up to a window, and 1 beyond it. Only the few points in the
window need its formula; what the others add are sums over the sorted points, one for all neurons of a coordinate.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from .neuron_networks import Neuron, body_gradient, head_gradient, outputs


class Seen(Protocol):
    """The features of networks with positions [settings, seeds, neurons]."""

    def outputs(self, head: Tensor) -> Tensor:
        """Return what the networks say, [settings, seeds, points]."""

    def head_gradient(self, pull: Tensor, weights: int) -> Tensor:
        """Return a loss's gradient by the head; pull is its derivative by each output."""

    def body_gradient(self, pull: Tensor, head: Tensor) -> Tensor:
        """Return a loss's gradient by the positions."""


class Features:
    """Every neuron at every point.

    Args:
        values: [settings, seeds, neurons, points].
        slopes: their derivatives by the coordinate, in that shape.
    """

    def __init__(self, values: Tensor, slopes: Tensor) -> None:
        self.values = values
        self.slopes = slopes

    def outputs(self, head: Tensor) -> Tensor:
        return outputs(self.values, head)

    def head_gradient(self, pull: Tensor, weights: int) -> Tensor:
        return head_gradient(self.values, pull, weights)

    def body_gradient(self, pull: Tensor, head: Tensor) -> Tensor:
        return body_gradient(self.slopes, pull, head)


class SortedPoints:
    """The points of some seeds, sorted by each coordinate.

    Args:
        x: [seeds, dimensions, points], in [0, 1].
        width: of the neurons.

    Attributes:
        window: places at which a neuron may be neither 0 nor 1. The same for every seed of a problem, since how sums
            round depends on it.
        x: sorted, [seeds, dimensions, places]; behind the points are places for a window, beyond 1.
        order: the point at each place, and the number of points behind them.
        place: of each point, [seeds, dimensions, points].

    Raises:
        ValueError: more points than the window has places lie in one neuron's width.
    """

    def __init__(self, x: Tensor, width: float) -> None:
        self.width = width
        self.count = x.shape[-1]
        expected = self.count * width
        self.window = math.ceil(expected + 7 * math.sqrt(expected)) + 8
        self.sorted, order = x.sort(-1)
        self.place = order.argsort(-1)
        if bool((self.sorted[..., self.window :] < self.sorted[..., : -self.window] + width).any()):
            raise ValueError(f"points: more than {self.window} of them in a width of {width}")
        self.x = pad(self.sorted, (0, self.window), value=2.0)
        self.order = pad(order, (0, self.window), value=self.count)


class StepFeatures:
    """Neurons that are narrow steps, as many for each coordinate: in their windows, and beyond.

    Args:
        neuron: rises from 0 to 1 within the width of the points.
        positions: [settings, seeds, dimensions * neurons of each].
    """

    def __init__(self, neuron: Neuron, points: SortedPoints, positions: Tensor) -> None:
        self._points = points
        u = positions.unflatten(-1, (points.x.shape[-2], -1))
        # all settings at once: [seeds, dimensions, settings * neurons]
        starts = (u - points.width / 2).permute(1, 2, 0, 3)
        first = torch.searchsorted(points.sorted, starts.flatten(-2)).view(starts.shape)
        self._first = first.permute(2, 0, 1, 3)  # [settings, seeds, dimensions, neurons]
        inside = self._first[..., None] + torch.arange(points.window)
        self._windows = inside.shape
        self._inside = inside.flatten(-2)
        x = self._for_settings(points.x).gather(-1, self._inside).view(self._windows)
        self._values, self._slopes = neuron(x - u[..., None])
        self._points_inside = self._for_settings(points.order).gather(-1, self._inside)

    def outputs(self, head: Tensor) -> Tensor:
        points, weights = self._points, head.view(self._first.shape)
        line = weights.new_zeros(*weights.shape[:-1], points.order.shape[-1] + 1)
        line.scatter_add_(-1, self._first + points.window, weights)
        line = line.cumsum(-1)
        line.scatter_add_(-1, self._inside, (weights[..., None] * self._values).flatten(-2))
        return line.gather(-1, self._for_settings(points.place)).sum(-2)

    def head_gradient(self, pull: Tensor, weights: int) -> Tensor:
        pulls = self._at(pull, self._for_settings(self._points.order))
        sums = pulls.cumsum(-1)
        beyond = sums[..., -1:] - sums.gather(-1, self._first + self._points.window - 1)
        return ((self._values * self._pulls_inside(pull)).sum(-1) + beyond).flatten(-2)

    def body_gradient(self, pull: Tensor, head: Tensor) -> Tensor:
        return -head * (self._slopes * self._pulls_inside(pull)).sum(-1).flatten(-2)

    def network(self, setting: int, seed: int) -> Tensor:
        """Return the neurons of one network at each point, [neurons, points], in float64."""
        points, first = self._points, self._first[setting, seed, ..., None]
        # one column more, for what is behind the last point
        place = pad(points.place[seed], (0, 1))[:, None]
        values = (place >= first + points.window).double().flatten(0, 1)
        which = self._points_inside[setting, seed].view(len(values), -1)
        values.scatter_(-1, which, self._values[setting, seed].double().flatten(0, 1))
        return values[:, : points.count]

    def _pulls_inside(self, pull: Tensor) -> Tensor:
        return self._at(pull, self._points_inside).view(self._windows)

    def _at(self, pull: Tensor, which: Tensor) -> Tensor:
        """Return the pull at these points of each dimension, and 0 behind the last point."""
        pulls = pad(pull, (0, 1))[..., None, :]
        return pulls.expand(*which.shape[:-1], -1).gather(-1, which)

    def _for_settings(self, values: Tensor) -> Tensor:
        return values.expand(self._first.shape[0], *values.shape)
