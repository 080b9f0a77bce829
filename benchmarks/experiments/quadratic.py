"""Steps to a solution by ratio: Phi is better conditioned than f, or convex while f is not.

Every rate of the grid is a pair of param groups of one optimizer, so that one launch per step tries all rates; the
first one to arrive is the best.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from ...optimizers.sgd import StackelbergSGD
from .experiment import Cell, Cells, Experiment
from .plot_style import COLORS, new_figure, save

STOP = 1e-10
RATIOS = (1, 3, 10, 30, 100, 300)
MODES = ("simultaneous", "alternating")
ELEMENTS = 64  # from the start of a small parameter in a flat buffer to the next one's
# docs/algorithm.md, table Q: measured with numpy alone
TABLE_Q = {
    "simultaneous": (1591, 614, 217, 90, 44, 41),
    "alternating": (1583, 597, 197, 67, 6, 9),
}


@dataclass(frozen=True)
class Game:
    """A function f(theta, w) of theta and w, [rates, dimension] each.

    Attributes:
        name: in tables and plots.
        value: f, [rates].
        gradient: of f by theta and by w.
        start: the initial theta and w, [dimension] each.
        condition: condition numbers at the solution of the joint Hessian, NaN if it is indefinite, and of Phi's.
        grid: the smallest and the largest body rate to try.
        max_steps: the limit of steps.
    """

    name: str
    value: Callable[[Tensor, Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    start: tuple[tuple[float, ...], tuple[float, ...]]
    condition: tuple[float, float]
    grid: tuple[float, float]
    max_steps: int = 4000


def quadratic(
    scale: float, weights: tuple[float, ...], name: str, grid: tuple[float, float]
) -> Game:
    """Return f = |w - scale theta|^2 / 2 + sum weights_i theta_i^2 / 2, with Phi = sum weights_i theta_i^2 / 2."""
    d = torch.tensor(weights)

    def value(theta: Tensor, w: Tensor) -> Tensor:
        return ((w - scale * theta).square().sum(1) + (d * theta.square()).sum(1)) / 2

    def gradient(theta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        off = w - scale * theta
        return d * theta - scale * off, off

    hessians = torch.stack(
        [
            torch.tensor([[x + scale**2, -scale], [-scale, 1.0]], dtype=torch.float64)
            for x in weights
        ]
    )
    values = torch.linalg.eigvalsh(hessians)
    condition = float(values.max() / values.min()), max(weights) / min(weights)
    start = (1.0,) * len(weights), (0.0,) * len(weights)
    return Game(name, value, gradient, start, condition, grid)


def oscillating(mu: float = 1.0) -> Game:
    """Return f = sum_i h_i (w_i - sin(3 theta + i))^2 / 2 + mu theta^2 / 2, not convex; Phi = mu theta^2 / 2 is.

    The follower's curvatures h are 1, 1/3 and 1/10, so that none of its steps is a best response.
    """
    h, phase = torch.tensor([1.0, 1 / 3, 0.1]), torch.arange(3.0)

    def value(theta: Tensor, w: Tensor) -> Tensor:
        off = w - torch.sin(3 * theta + phase)
        return ((h * off.square()).sum(1) + mu * theta.square().sum(1)) / 2

    def gradient(theta: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        pull = h * (w - torch.sin(3 * theta + phase))
        slope = -(pull * 3 * torch.cos(3 * theta + phase)).sum(1, keepdim=True)
        return mu * theta + slope, pull

    start = (2.0,), (0.0,) * 3
    return Game("oscillating", value, gradient, start, (math.nan, 1.0), (1e-3, 1.0), max_steps=3000)


def steps_needed(game: Game, mode: str, ratio: float, rates: int) -> dict[str, Any]:
    """Return the steps until f < STOP at the best body rate, and that rate; None if no rate gets there."""
    grid = torch.logspace(*(math.log10(rate) for rate in game.grid), rates, dtype=torch.float64)
    groups: list[dict[str, Any]] = []
    for role, start, factor in (("body", game.start[0], 1.0), ("head", game.start[1], ratio)):
        for rate in grid.tolist():
            p = nn.Parameter(torch.tensor(start))
            groups.append({"params": [p], "lr": rate * factor, "role": role})
    with warnings.catch_warnings():
        # about a body faster than the head: the groups belong to different games
        warnings.simplefilter("ignore")
        optimizer = StackelbergSGD(groups, grads="flat")
    players = [[g["params"][0] for g in groups if g["role"] == role] for role in ("body", "head")]
    buffers = [
        optimizer.flat_grads[role][0].view(rates, ELEMENTS)[:, : len(start)]
        for role, start in zip(("body", "head"), game.start, strict=True)
    ]

    def differentiate() -> None:
        for buffer, gradient in zip(buffers, game.gradient(*point()), strict=True):
            buffer.copy_(gradient)

    @torch.no_grad()
    def point() -> tuple[Tensor, ...]:
        return tuple(torch.stack(params) for params in players)

    for step in range(1, game.max_steps + 1):
        if mode == "simultaneous":
            differentiate()
            optimizer.step()
        else:
            for role in ("head", "body"):
                differentiate()
                optimizer.step(role=role)
        values = game.value(*point())
        arrived = (values < STOP).nonzero()
        if len(arrived):
            middle = int(arrived[len(arrived) // 2])
            return {"steps": step, "body_rate": float(grid[middle]), "launches": optimizer.launches}
        if not bool(values.isfinite().any()):
            break
    return {"steps": None, "body_rate": None, "launches": optimizer.launches}


class Quadratic(Experiment):
    """Steps by ratio where f is quadratic."""

    name = "quadratic"

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        spread = tuple(10.0 * 10 ** (i / 19) for i in range(20))
        self.games = [
            quadratic(10.0, (100.0,), "Q: theta and w numbers", (1e-4, 3e-2)),
            quadratic(10.0, spread, "20 dimensions", (1e-4, 1e-1)),
        ]
        if quick:
            self.games = self.games[:1]
        self.ratios = (10, 100) if quick else RATIOS
        self.rates = 60 if quick else 400

    def settings(self) -> dict[str, Any]:
        return {
            "games": [game.name for game in self.games],
            "ratios": self.ratios,
            "rates": self.rates,
            "stop": STOP,
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        def work(game: Game, mode: str, ratio: float) -> Callable[[], Any]:
            return lambda: steps_needed(game, mode, ratio, self.rates)

        yield [
            Cell(f"{game.name}, {mode}, ratio {ratio}", work(game, mode, ratio))
            for game in self.games
            for mode in MODES
            for ratio in self.ratios
        ]

    def _steps(self, cells: Cells, game: Game, mode: str) -> list[int | None]:
        return [cells[f"{game.name}, {mode}, ratio {ratio}"]["steps"] for ratio in self.ratios]

    def tables(self, cells: Cells) -> list[Table]:
        tables = []
        for game in self.games:
            table = Table(title=f"Steps to f < {STOP:g}, body rate tuned per ratio: {game.name}")
            table.add_column("head/body ratio")
            for ratio in self.ratios:
                table.add_column(str(ratio), justify="right")
            for mode in MODES:
                steps = self._steps(cells, game, mode)
                table.add_row(
                    mode, *(f"> {game.max_steps}" if s is None else str(s) for s in steps)
                )
            tables.append(table)
        return tables

    def verdict(self, cells: Cells) -> list[str]:
        lines = []
        for game in self.games:
            joint, phi = game.condition
            hessian = "indefinite" if math.isnan(joint) else f"has condition number {joint:.4g}"
            lines.append(f"{game.name}: the joint Hessian {hessian}, Phi's {phi:.4g}.")
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        for mode in MODES:
            for ratio, steps in zip(
                self.ratios, self._steps(cells, self.games[0], mode), strict=True
            ):
                known = TABLE_Q[mode][RATIOS.index(ratio)]
                # a coarse grid may miss the best rate
                if not self.quick and (steps is None or abs(steps - known) > 1 + 0.02 * known):
                    failures.append(f"{mode}, ratio {ratio}: {steps} steps, known are {known}")
        if self.quick and not self._steps(cells, self.games[0], "alternating")[-1] <= 10:
            failures.append("alternating, ratio 100: more than 10 steps")
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        figure, axes = new_figure(len(self.games))
        for axis, game in zip(axes, self.games, strict=True):
            # triangles are at one height: shifted sideways, they do not cover each other
            for color, mode, shift in zip(COLORS, MODES, (0.93, 1.07), strict=False):
                steps = self._steps(cells, game, mode)
                points = [(r, s) for r, s in zip(self.ratios, steps, strict=True) if s is not None]
                axis.plot(
                    [r for r, _ in points], [s for _, s in points], "o-", color=color, label=mode
                )
                never = [r * shift for r, s in zip(self.ratios, steps, strict=True) if s is None]
                axis.plot(never, [game.max_steps] * len(never), "^", color=color, mfc="none")
            axis.set(
                xscale="log",
                yscale="log",
                title=game.name,
                xlabel="head/body ratio",
                ylabel=f"steps to f < {STOP:g}",
            )
            axis.legend()
        save(
            figure,
            path,
            "body rate tuned for every ratio; fewer steps are better; triangle: not reached",
        )


class Nonconvex(Quadratic):
    """Steps by ratio where f oscillates."""

    name = "nonconvex"

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.games = [replace(oscillating(), max_steps=300) if quick else oscillating()]
        self.ratios = (1, 10) if quick else (1, 3, 10, 30, 100)

    def check(self, cells: Cells) -> list[str]:
        if all(steps is None for steps in self._steps(cells, self.games[0], "alternating")):
            return ["alternating: the minimum was not reached at any ratio"]
        return []
