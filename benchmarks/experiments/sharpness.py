"""Curvature of f and of Phi along training, from a head at its usual size and from one ten times smaller."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from ...demo.data import split_digits
from ...game.curvature import curvature
from ...optimizers.sgd import StackelbergSGD
from .experiment import Cell, Cells, Experiment
from .plot_style import COLORS, new_figure, save

RIDGE = 1e-3
OTHER_RIDGES = (1e-2, 2e-2)  # at step 0 alone: the size of Phi's curvature depends on the ridge
STARTS = {"head as usual": 1.0, "head 10x smaller": 0.1}
RECORDED_STEPS = (0, 5, 10, 20, 50, 100, 200)
RATE = 0.1
CLASSES = 10
# f = mean |outputs - targets|^2 / 2 + ridge / 2 |w|^2 is torch's mean squared error if outputs, targets and head are
# all larger by this factor, and the ridge smaller by its square; theta, and curvature in theta, stay the same
SCALE = math.sqrt(CLASSES / 2)


def follow(
    seed: int, scale: float, steps: int, rows: int, head_ridge: float = RIDGE
) -> dict[str, Any]:
    """Return spectra by step along gradient descent of both players at one rate, of tanh 64-12-10 on digits."""
    torch.manual_seed(seed)
    body, head = nn.Sequential(nn.Linear(64, 12), nn.Tanh()), nn.Linear(12, CLASSES)
    with torch.no_grad():
        for p in head.parameters():
            p.mul_(scale)
    images, labels = (tensor[:rows] for tensor in split_digits().train)
    targets = F.one_hot(labels, CLASSES).float()
    optimizer = StackelbergSGD(
        [{"params": list(body.parameters())}, {"params": list(head.parameters()), "role": "head"}],
        lr=RATE,
        head_lr_ratio=1.0,
    )
    spectra: dict[str, Any] = {}
    for step in range(steps + 1):
        if step in RECORDED_STEPS:
            spectra[str(step)] = _spectra(body, head, images, targets, head_ridge)
        ridge = head_ridge / 2 * sum(p.square().sum() for p in head.parameters())
        loss = (head(body(images)) - targets).square().sum(1).mean() / 2 + ridge
        loss.backward()
        optimizer.step(zero_grad=True)
    return spectra


def _spectra(
    body: nn.Module, head: nn.Linear, images: Tensor, targets: Tensor, head_ridge: float
) -> dict[str, Any]:
    large = copy.deepcopy(head)
    with torch.no_grad():
        for p in large.parameters():
            p.mul_(SCALE)
    ridge = head_ridge / SCALE**2
    report = curvature(body, large, images, SCALE * targets, "mse", ridge, max_iterations=2000)
    points = {"stale": report.stale, "response": report.response}
    return {point: _plain(spectra) for point, spectra in points.items()}


def _plain(spectra: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """Select the spectra in theta; None replaces NaN, which JSON does not have."""
    return {
        name: {k: None if math.isnan(v) else v for k, v in asdict(spectra[name]).items()}
        for name in ("body", "phi")
        if name in spectra
    }


class Sharpness(Experiment):
    """Largest eigenvalues of f and of Phi by step."""

    name = "curvature"
    computes_with = ("scipy", "sklearn")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.seeds, self.steps, self.rows = (1, 10, 100) if quick else (3, 200, 1438)

    def settings(self) -> dict[str, Any]:
        return {
            "model": "tanh 64-12-10, digits, half the mean squared distance to one-hot classes, ridge on the head",
            "ridge": RIDGE,
            "other_ridges": OTHER_RIDGES,
            "rate": RATE,
            "seeds": self.seeds,
            "steps": self.steps,
            "rows": self.rows,
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            Cell(f"{name}, seed {seed}", partial(follow, seed, scale, self.steps, self.rows))
            for name, scale in STARTS.items()
            for seed in range(self.seeds)
        ]
        yield [
            Cell(self._key(ridge, seed), partial(follow, seed, scale, 0, self.rows, ridge))
            for scale in (min(STARTS.values()),)
            for ridge in OTHER_RIDGES
            for seed in range(self.seeds)
        ]

    @staticmethod
    def _key(ridge: float, seed: int) -> str:
        return f"head 10x smaller, ridge {ridge:g}, seed {seed}"

    def _by_ridge(self, cells: Cells, ridge: float) -> list[float]:
        """Return Phi's largest eigenvalue at step 0, by seed."""
        points = [cells[self._key(ridge, seed)]["0"]["response"] for seed in range(self.seeds)]
        return [spectra["phi"]["largest"] for spectra in points]

    def _values(
        self, cells: Cells, start: str, step: int, point: str, function: str, quantity: str
    ) -> list[float]:
        """Return a quantity of a spectrum by seed."""
        values = [
            cells[f"{start}, seed {seed}"][str(step)][point][function][quantity]
            for seed in range(self.seeds)
        ]
        return [math.nan if value is None else value for value in values]

    def _recorded_steps(self) -> list[int]:
        return [step for step in RECORDED_STEPS if step <= self.steps]

    def tables(self, cells: Cells) -> list[Table]:
        table = Table(
            title="Largest eigenvalue, smallest and largest of the seeds; each column names its point"
        )
        for column in (
            "start",
            "step",
            "f_tt at (theta, w)",
            "f_tt at (theta, w*)",
            "hess Phi, at (theta, w*)",
            "sharper",
        ):
            table.add_column(column)
        for start in STARTS:
            for step in self._recorded_steps():
                stale, response, phi = (
                    self._values(cells, start, step, point, function, "largest")
                    for point, function in (
                        ("stale", "body"),
                        ("response", "body"),
                        ("response", "phi"),
                    )
                )
                sharper = (
                    "Phi" if min(phi) > max(stale) else "f" if max(phi) < min(stale) else "either"
                )
                table.add_row(start, str(step), *map(_range, (stale, response, phi)), sharper)
        return [table]

    def verdict(self, cells: Cells) -> list[str]:
        lines = []
        for start in STARTS:
            steps = [
                step
                for step in self._recorded_steps()
                if min(self._values(cells, start, step, "response", "phi", "largest"))
                > max(self._values(cells, start, step, "stale", "body", "largest"))
            ]
            when = f"at steps {', '.join(map(str, steps))}" if steps else "at no recorded step"
            lines.append(
                f"{start}: Phi is sharper than f_tt at the stale head, in all seeds, {when}."
            )
        largest = self._values(cells, "head 10x smaller", 0, "response", "phi", "largest")
        by_ridge = {RIDGE: largest} | {r: self._by_ridge(cells, r) for r in OTHER_RIDGES}
        ranges = "; ".join(f"{ridge:g}: {_range(values)}" for ridge, values in by_ridge.items())
        lines.append(f"Phi's largest eigenvalue at step 0, head 10x smaller, by ridge: {ranges}.")
        lines.append(
            "At one and the same point, (theta, w*), Phi is never sharper than f_tt: that is a theorem."
        )
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        for start in STARTS:
            for step in self._recorded_steps():
                body, phi = (
                    self._values(cells, start, step, "response", function, "largest")
                    for function in ("body", "phi")
                )
                slack = 2e-3 * max(map(abs, body))  # the tolerance of both
                if any(p > b + slack for b, p in zip(body, phi, strict=True)):
                    failures.append(
                        f"{start}, step {step}: Phi is sharper than f_tt at (theta, w*)"
                    )
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        figure, axes = new_figure(len(STARTS))
        lines = {
            "f_tt at (theta, w), the head as it is": ("stale", "body"),
            "f_tt at (theta, w*)": ("response", "body"),
            "hess Phi, at (theta, w*)": ("response", "phi"),
        }
        for axis, start in zip(axes, STARTS, strict=True):
            for color, (label, (point, function)) in zip(COLORS, lines.items(), strict=False):
                values = [
                    self._values(cells, start, s, point, function, "largest")
                    for s in self._recorded_steps()
                ]
                axis.plot(
                    self._recorded_steps(),
                    [sum(v) / len(v) for v in values],
                    "o-",
                    color=color,
                    label=label,
                )
                low, high = [min(v) for v in values], [max(v) for v in values]
                axis.fill_between(self._recorded_steps(), low, high, color=color, alpha=0.15, lw=0)
            axis.set(
                xscale="symlog",
                yscale="log",
                title=start,
                xlabel="step",
                ylabel="largest eigenvalue",
            )
        axes[0].legend(fontsize=7)
        save(figure, path, f"mean of {self.seeds} seeds, band: smallest and largest")


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} .. {max(values):.3g}"
