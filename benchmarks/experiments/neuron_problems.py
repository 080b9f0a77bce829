"""The problems of the neurons experiment, after Marion & Berthier 2023 (arXiv 2304.09576).

Every seed has its own start and its own data, the same for all settings and modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Generator, Tensor

from .neuron_data import WIDTH, Batch, Data, Steps, Stream, target_steps, teacher
from .neuron_networks import relu, smooth_step


def sorted_from_zero(generator: Generator) -> tuple[Tensor, Tensor]:
    """Return 20 sorted positions, and a head of zeros with a bias."""
    return torch.rand(20, generator=generator).sort().values, torch.zeros(21)


def random_start(neurons: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return positions between 0 and 1, and a head between 0 and 3."""
    position, weight = torch.rand(2, neurons, generator=generator)
    return position, 3 * weight


@dataclass(frozen=True)
class Problem:
    """A target and how it is learned.

    Attributes:
        name: in tables, plots and keys.
        start: from a seed's generator, the first positions and head.
        data: from the generators of some seeds.
        size: numbers of one network's features at one step.
        steps: of a run.
        variance: of the target.
        points: the mean squared error is the loss's square times this; None if the loss is that error.
        ratios: by mode, head/body ratios to try.
        head_rates: the first and the last rate of the head to try, as exponents of half decades.
        body_rates: the same of the body, beside an exact head.
        published_rate: of one rate for both, in the same unit.
        published: what others found.
        at_most: numbers of tuning seeds and of evaluation seeds, if the experiment's are too many for it.
    """

    name: str
    start: Callable[[Generator], tuple[Tensor, Tensor]]
    data: Callable[[Sequence[Generator]], Data]
    size: int
    steps: int
    variance: float
    points: int | None
    ratios: dict[str, tuple[float, ...]] = field(repr=False)
    head_rates: tuple[int, int]
    body_rates: tuple[int, int]
    published_rate: int
    published: str
    at_most: tuple[int | None, int | None] = (None, None)

    @property
    def recovered(self) -> float:
        """The loss below which a target counts as recovered: at 1% of its variance."""
        mean_square = 0.01 * self.variance
        return mean_square if self.points is None else math.sqrt(mean_square / self.points)


SMALL_RATIOS = {"simultaneous": (1, 3, 10, 30, 100), "alternating": (1, 10, 30)}
PROBLEMS = (
    Problem(
        name="1-D",
        start=sorted_from_zero,
        data=Stream,
        size=20,
        steps=200_000,
        variance=3.31,
        points=None,
        ratios={"simultaneous": (1, 10, 100, 1e3, 1e4, 5e4), "alternating": (1, 1e3, 1e4)},
        head_rates=(-11, -3),
        body_rates=(-16, -12),
        published_rate=-10,
        published="ratio 1 gets stuck, 50000 recovers the target",
    ),
    Problem(
        name="2-D",
        start=partial(random_start, 20),
        data=partial(Batch, neuron=smooth_step(WIDTH), target=target_steps, dimensions=2),
        size=20_000,
        steps=3000,
        variance=2.9,
        points=1000,
        ratios=SMALL_RATIOS,
        head_rates=(-3, 1),
        body_rates=(-5, -1),
        published_rate=0,
        published="medians of 0.0145 (ratio 1, 300 steps) and 0.0038 (ratio 100, 5000 steps)",
    ),
    Problem(
        name="10-D",
        start=partial(random_start, 100),
        data=partial(Steps, width=WIDTH, dimensions=10, points=10_000),
        size=100_000,
        steps=3000,
        variance=14.5,
        points=10_000,
        ratios=SMALL_RATIOS,
        head_rates=(-1, 2),
        body_rates=(-4, -2),
        published_rate=0,
        published="medians of 0.0130 (ratio 1, 300 steps) and 0.0051 (ratio 100, 5000 steps)",
        at_most=(2, 8),
    ),
    Problem(
        name="ReLU",
        start=partial(random_start, 10),
        data=partial(Batch, neuron=relu, target=teacher, dimensions=1),
        size=10_000,
        steps=3000,
        variance=0.0244,
        points=1000,
        ratios=SMALL_RATIOS,
        head_rates=(-3, 1),
        body_rates=(-4, 1),
        published_rate=0,
        published="medians of 0.00152 (ratio 1, 300 steps) and 0.00037 (ratio 100, 5000 steps)",
    ),
)
