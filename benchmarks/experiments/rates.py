"""Convergence rates of alternating steps under gradient noise: the slope of the error over time.

Each of two instances runs many times at once, as the rows of two parameters. The first is smooth, with a strongly
convex Phi. The second is neither: its Phi is a ReLU phase retrieval over a box, weakly convex as docs/algorithm.md
shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from ...game.schedules import TwoTimeScaleLR
from ...groups.constraints import Box, Constraint
from ...optimizers.sgd import StackelbergSGD
from .experiment import Cell, Cells, Experiment
from .plot_style import COLORS, new_figure, save
from .statistics import interval

REPLICAS = 20
NOISE = 0.5
# the exponents of body and head; by instance, a schedule and the exponent of the error in related theory
SCHEDULES = {"1, 2/3": (1.0, 2 / 3), "3/5, 2/5": (0.6, 0.4)}
THEORY = {"strongly convex": ("1, 2/3", -2 / 3), "weakly convex": ("3/5, 2/5", -2 / 5)}


@dataclass(frozen=True)
class Instance:
    """A function f of theta and w, [rows, d] each.

    Attributes:
        gradient: of f by theta and by w.
        error: of theta, [rows].
        start: the initial theta, [d].
        rates: the initial rates of body and head.
        offset: of the schedule.
        constraint: on theta.
    """

    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    error: Callable[[Tensor], Tensor]
    start: tuple[float, ...]
    rates: tuple[float, float]
    offset: float
    constraint: Constraint | None = None


def strongly_convex() -> Instance:
    """Return f = |w - A theta|^2 / 2 + sum d_i theta_i^2 / 2; the error is the squared distance to theta* = 0."""
    a = torch.tensor([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.5], [0.0, -0.5, 1.0]])
    d = torch.tensor([1.0, 2.0, 4.0])

    def gradient(theta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        off = w - theta @ a.t()
        return d * theta - off @ a, off

    return Instance(gradient, lambda theta: theta.square().sum(1), (1.0,) * 3, (0.2, 0.5), 20.0)


# unit vectors, and the measured squares of their products with theta
_ANGLES = torch.arange(8) * math.pi / 8
VECTORS = torch.stack([_ANGLES.cos(), _ANGLES.sin()], 1)
SQUARES = (VECTORS @ torch.tensor([1.5, 0.5])).square()
# weak convexity of f(., w): |u^2 - b| + u^2 = max(2 u^2 - b, b) is convex, so f + rho / 2 |theta|^2 is, too
RHO = 2 * float(torch.linalg.eigvalsh(VECTORS.t() @ VECTORS / len(VECTORS))[-1])
BOX = Box(-1.0, 1.0)


def phase_retrieval(theta: Tensor) -> Tensor:
    """Return mean_i relu(<a_i, theta>^2 - b_i) + relu(b_i - <a_i, theta>^2), [rows]."""
    off = (theta @ VECTORS.to(theta).t()).square() - SQUARES.to(theta)
    return (off.relu() + (-off).relu()).mean(-1)


def moreau(theta: Tensor) -> Tensor:
    """Return the squared norm of the gradient of the Moreau envelope of Phi over the box, at 1 / (2 rho), [rows].

    It is |theta - x|^2 (2 rho)^2 for the proximal point x, the minimiser of Phi + rho |x - theta|^2 over the box. That
    function is strongly convex; a grid around the best point of the grid before finds x.
    """
    theta = theta.double()
    center, width = torch.zeros_like(theta), 1.0
    ticks = torch.linspace(-1, 1, 11, dtype=torch.float64)
    offsets = torch.cartesian_prod(ticks, ticks)
    for _ in range(16):
        points = (center[:, None] + width * offsets).clamp(BOX.low, BOX.high)
        values = phase_retrieval(points) + RHO * (points - theta[:, None]).square().sum(-1)
        center = points[torch.arange(len(theta)), values.argmin(1)]
        width *= 0.4
    return (theta - center).square().sum(1) * (2 * RHO) ** 2


def weakly_convex() -> Instance:
    """Return f = phase_retrieval(theta) + |w - C theta|^2 / 2 over a box: not smooth, Phi weakly convex."""
    c = torch.tensor([[1.0, -1.0], [0.5, 1.0]])

    def gradient(theta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        products = theta @ VECTORS.t()
        sign = (products.square() - SQUARES).sign()
        slope = (sign * 2 * products) @ VECTORS / len(VECTORS)
        off = w - theta @ c.t()
        return slope - off @ c, off

    return Instance(gradient, moreau, (0.1, 0.9), (0.05, 0.5), 50.0, BOX)


INSTANCES = {"strongly convex": strongly_convex, "weakly convex": weakly_convex}


def run_once(name: str, exponents: tuple[float, float], steps: int, seed: int) -> list[list[float]]:
    """Return pairs of a step and the mean error of the replicas after it."""
    instance = INSTANCES[name]()
    theta = nn.Parameter(torch.tensor(instance.start).repeat(REPLICAS, 1))
    w = nn.Parameter(torch.zeros_like(theta))
    body, head = instance.rates
    optimizer = StackelbergSGD(
        [{"params": [theta], "lr": body}, {"params": [w], "lr": head, "role": "head"}],
        constraint={"body": instance.constraint},
    )
    schedule = TwoTimeScaleLR(optimizer, *exponents, offset=instance.offset)
    noise = torch.Generator().manual_seed(seed)
    recorded = set(np.unique(np.geomspace(10, steps, 4 * math.ceil(math.log10(steps)))).astype(int))
    curve = []
    for step in range(1, steps + 1):
        for index, (p, role) in enumerate(((w, "head"), (theta, "body"))):
            with torch.no_grad():
                gradient = instance.gradient(theta, w)[1 - index]
                p.grad = gradient + NOISE * torch.randn(p.shape, generator=noise)
            optimizer.step(role=role)
        schedule.step()
        if step in recorded:
            with torch.no_grad():
                curve.append([step, float(instance.error(theta.detach()).mean())])
    return curve


def slope(curve: list[list[float]]) -> float:
    """Fit the slope of log error over log time by least squares over the last two decades."""
    points = np.array([point for point in curve if point[0] >= curve[-1][0] / 100])
    return float(np.polyfit(np.log(points[:, 0]), np.log(points[:, 1]), 1)[0])


class Rates(Experiment):
    """Slopes of the error by instance and schedule."""

    name = "rates"
    shows_with = ("matplotlib", "scipy")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.steps, self.seeds = (300, 2) if quick else (30_000, 10)

    def settings(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "seeds": self.seeds,
            "replicas": REPLICAS,
            "noise": NOISE,
            "schedules": SCHEDULES,
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            Cell(
                self._key(name, label, seed),
                partial(run_once, name, SCHEDULES[label], self.steps, seed),
            )
            for name in INSTANCES
            for label in SCHEDULES
            for seed in range(self.seeds)
        ]

    @staticmethod
    def _key(name: str, label: str, seed: int) -> str:
        return f"{name}, exponents {label}, seed {seed}"

    def _slopes(self, cells: Cells, name: str, label: str) -> list[float]:
        return [slope(cells[self._key(name, label, seed)]) for seed in range(self.seeds)]

    def tables(self, cells: Cells) -> list[Table]:
        table = Table(title="Slope of log error over log steps, alternating SGD with noise")
        for column in (
            "Phi",
            "error",
            "exponents (body, head)",
            "measured, 95% interval",
            "theory, at most",
        ):
            table.add_column(column)
        errors = {
            "strongly convex": "squared distance",
            "weakly convex": "squared Moreau gradient",
        }
        for name in INSTANCES:
            for label in SCHEDULES:
                mean, half = interval(self._slopes(cells, name, label))
                schedule, bound = THEORY[name]
                theory = f"{bound:.2f}" if schedule == label else "-"
                table.add_row(name, errors[name], label, f"{mean:.2f} ± {half:.2f}", theory)
        return [table]

    def verdict(self, cells: Cells) -> list[str]:
        lines = []
        for name, (label, bound) in THEORY.items():
            mean, half = interval(self._slopes(cells, name, label))
            comparison = (
                "steeper than"
                if mean + half < bound
                else "not told apart from"
                if mean - half < bound
                else "flatter than"
            )
            lines.append(
                f"{name}: {mean:.2f} ± {half:.2f} is {comparison} the related theory's bound of {bound:.2f}, which "
                "holds for the worst case."
            )
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        for name, (label, bound) in THEORY.items():
            mean, half = interval(self._slopes(cells, name, label))
            if mean - half > (0.0 if self.quick else bound):
                failures.append(
                    f"{name}: slope {mean:.2f} ± {half:.2f} is flatter than {bound:.2f}"
                )
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        figure, axes = new_figure(len(INSTANCES))
        for axis, name in zip(axes, INSTANCES, strict=True):
            for color, label in zip(COLORS, SCHEDULES, strict=False):
                curves = np.array(
                    [cells[self._key(name, label, seed)] for seed in range(self.seeds)]
                )
                steps, errors = curves[0, :, 0], curves[:, :, 1]
                axis.plot(steps, errors.mean(0), color=color, label=f"exponents {label}")
                axis.fill_between(
                    steps, errors.min(0), errors.max(0), color=color, alpha=0.15, lw=0
                )
                if THEORY[name][0] == label:
                    line = errors.mean(0)[-1] * (steps / steps[-1]) ** THEORY[name][1]
                    axis.plot(
                        steps, line, "--", color=color, lw=1, label=f"slope {THEORY[name][1]:.2f}"
                    )
            axis.set(
                xscale="log", yscale="log", title=f"Phi {name}", xlabel="steps", ylabel="error"
            )
            axis.legend()
        save(
            figure,
            path,
            f"mean over {REPLICAS} runs per seed; band: smallest and largest of {self.seeds} seeds",
        )
