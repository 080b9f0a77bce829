"""A photograph fitted by 2-D Gaussians that grow in number: one tuned rate beside rates by kind of parameter.

Splatting codes give position, size, angle, opacity and colour rates of their own, two orders of magnitude apart, by
one `torch.optim.Adam` for each or a group for each. Here both arms get the same number of tuning runs: one rate from a
grid, or a factor from a grid by which all published rates are multiplied. Both are tuned twice: with rates that stay
what they are, as most do in splatting codes, and with rates that fall once the Gaussians do not grow in number any
more. Seeds are paired: one seed means the same start, and the same pixels at every step.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from ...demo.gaussian_fit import QUICK, Size, fit
from ...demo.gaussian_model import KINDS, PUBLISHED, begin
from ...demo.gaussian_optimizers import ByKind, GaussianOptimizer, OneRate, SixAdams
from .experiment import Cell, Cells, Experiment
from .statistics import difference, interval

SCHEDULES = ("constant", "falling")
# the smallest rate, or factor of the published ones; each next one is twice the last
GRIDS = {"one rate": 2.5e-3, "by kind": 2.0}
POINTS = 5
OPTIMIZERS: dict[str, type[GaussianOptimizer]] = {
    "one rate": OneRate,
    "by kind": ByKind,
    "six Adams": SixAdams,
}
TIMED = (256, 100_000)  # Gaussians


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    optimizer: str
    schedule: str

    def key(self, exponent: int, seed: int) -> str:
        return f"{self.optimizer}, {self.schedule}, {self.value(exponent):g}, seed {seed}"

    def value(self, exponent: int) -> float:
        """The rate, or what the published ones are multiplied by."""
        return GRIDS["one rate" if self.optimizer == "one rate" else "by kind"] * 2.0**exponent

    def rates(self, exponent: int) -> dict[str, float]:
        value = self.value(exponent)
        by_kind = self.optimizer != "one rate"
        return {kind: value * (PUBLISHED[kind] if by_kind else 1.0) for kind in KINDS}


ALL = [Arm(o, s) for o in GRIDS for s in SCHEDULES]
TORCHS = Arm("six Adams", "constant")  # as the rates by kind that stay what they are


def fit_arm(arm: Arm, exponent: int, seed: int, size: Size, keeps_pictures: bool) -> dict[str, Any]:
    """Fit the image once, with the rates of an arm at a point of its grid."""
    optimizer_class, rates = OPTIMIZERS[arm.optimizer], arm.rates(exponent)
    return fit(optimizer_class, rates, arm.schedule, seed, size, keeps_pictures)


def time_steps(gaussians: int, rounds: int, repeats: int) -> dict[str, dict[str, list[int]]]:
    """Return nanoseconds of a step, and of a replacement of all parameters, of each optimizer in interleaved rounds.

    Gradients are there before the clock starts; the step clears them.
    """
    generator = torch.Generator().manual_seed(0)
    start = begin(gaussians, 1.5, generator)
    optimizers = {name: cls(start, dict.fromkeys(KINDS, 1e-4)) for name, cls in OPTIMIZERS.items()}
    rows = torch.arange(gaussians)
    found: dict[str, dict[str, list[int]]] = {
        what: {name: [] for name in optimizers} for what in ("step", "replace")
    }
    order = random.Random(0)
    gc.disable()
    try:
        for number in range(rounds):
            for name in order.sample(list(optimizers), len(optimizers)):
                optimizer, spent = optimizers[name], 0
                for _ in range(repeats):
                    for param in optimizer.params.values():
                        param.grad = torch.ones_like(param)
                    before = time.perf_counter_ns()
                    optimizer.step()
                    spent += time.perf_counter_ns() - before
                found["step"][name].append(spent // repeats)
                if number % 5 == 0:
                    values = {kind: p.detach().clone() for kind, p in optimizer.params.items()}
                    before = time.perf_counter_ns()
                    optimizer.replace(values, rows)
                    found["replace"][name].append(time.perf_counter_ns() - before)
    finally:
        gc.enable()
    return found


class Gaussians(Experiment):
    name = "gaussians"
    measures_time = True
    computes_with = ("sklearn",)
    shows_with = ("matplotlib", "scipy", "sklearn")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.size = QUICK if quick else Size()
        self.points = range(2, 5) if quick else range(POINTS)
        self.tuning_seeds = (1000,) if quick else (1000, 1001)
        self.seeds = range(2) if quick else range(5)
        self.timed = TIMED[:1] if quick else TIMED

    def settings(self) -> dict[str, Any]:
        return {
            "image": "scikit-learn's flower.jpg",
            "size": vars(self.size),
            "published_rates": PUBLISHED,
            "grids": {name: [first * 2.0**k for k in self.points] for name, first in GRIDS.items()},
            "tuning_seeds": self.tuning_seeds,
            "seeds": list(self.seeds),
            "timed_gaussians": self.timed,
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            self._cell(arm, exponent, seed)
            for arm in ALL
            for exponent in self.points
            for seed in self.tuning_seeds
        ]
        pictured = [self.pictured(cells, name) for name in GRIDS]
        yield [
            self._cell(arm, self.best(cells, arm), seed, arm in pictured and seed == self.seeds[0])
            for arm in (*ALL, TORCHS)
            for seed in self.seeds
        ]
        rounds = 20 if self.quick else 200
        yield [
            Cell(f"time, {count} Gaussians", partial(time_steps, count, rounds, repeats))
            for count, repeats in zip(self.timed, (10, 1), strict=False)
        ]

    def _cell(self, arm: Arm, exponent: int, seed: int, keeps_pictures: bool = False) -> Cell:
        work = partial(fit_arm, arm, exponent, seed, self.size, keeps_pictures)
        return Cell(arm.key(exponent, seed), work)

    def last(self, cells: Cells, arm: Arm, exponent: int, seeds: Any) -> list[float]:
        """Return the PSNR at the last step by seed."""
        return [cells[arm.key(exponent, s)]["psnr"][str(self.size.steps)] for s in seeds]

    def tuned(self, cells: Cells, arm: Arm) -> list[float]:
        """Return the mean PSNR of the tuning seeds at each point of the grid."""
        return [statistics.fmean(self.last(cells, arm, k, self.tuning_seeds)) for k in self.points]

    def best(self, cells: Cells, arm: Arm) -> int:
        """Return the exponent of the best rates; torch's Adams get those that the groups by kind have."""
        arm = Arm("by kind", arm.schedule) if arm == TORCHS else arm
        scores = self.tuned(cells, arm)
        return self.points[scores.index(max(scores))]

    def pictured(self, cells: Cells, optimizer: str) -> Arm:
        """Return the arm with the schedule that was better in tuning."""
        arms = [arm for arm in ALL if arm.optimizer == optimizer]
        return max(arms, key=lambda arm: max(self.tuned(cells, arm)))

    def final(self, cells: Cells, arm: Arm) -> list[float]:
        return self.last(cells, arm, self.best(cells, arm), self.seeds)

    def tables(self, cells: Cells) -> list[Table]:
        title = f"PSNR in dB after {self.size.steps} steps, {len(self.seeds)} seeds"
        table = Table(title=title)
        for column in ("optimizer", "rates", "best", "mean", "by seed"):
            table.add_column(column)
        for arm in (*ALL, TORCHS):
            values = self.final(cells, arm)
            mean, half = interval(values)
            times = "" if arm.optimizer == "one rate" else " x published"
            table.add_row(
                arm.optimizer,
                arm.schedule,
                f"{arm.value(self.best(cells, arm)):g}{times}",
                f"{mean:.2f} +- {half:.2f}",
                ", ".join(f"{value:.2f}" for value in values),
            )
        times = Table(title="Microseconds, median of interleaved rounds")
        for column in ("Gaussians", "what", *OPTIMIZERS):
            times.add_column(column, justify="right")
        for count in self.timed:
            for what, samples in cells[f"time, {count} Gaussians"].items():
                medians = [statistics.median(samples[name]) / 1e3 for name in OPTIMIZERS]
                times.add_row(f"{count:,}", what, *(f"{m:,.1f}" for m in medians))
        return [table, times]

    def verdict(self, cells: Cells) -> list[str]:
        lines = []
        for schedule in SCHEDULES:
            sides = [self.final(cells, Arm(o, schedule)) for o in ("by kind", "one rate")]
            lines.append(
                f"{schedule} rates: {_compared('rates by kind', *sides, 'one tuned rate')}"
            )
        best = [self.final(cells, self.pictured(cells, o)) for o in ("by kind", "one rate")]
        lines.append(
            f"each at its better schedule: {_compared('rates by kind', *best, 'one tuned rate')}"
        )
        twins = self.final(cells, Arm("by kind", TORCHS.schedule)), self.final(cells, TORCHS)
        lines.append(f"at the same rates: {_compared('one launch', *twins, 'six Adams of torch')}")
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        if not self.quick:
            failures += [
                f"{arm.optimizer}, {arm.schedule}: the best rate is at an end of the grid"
                for arm in ALL
                if self.best(cells, arm) in (self.points[0], self.points[-1])
            ]
        twins = self.final(cells, Arm("by kind", TORCHS.schedule)), self.final(cells, TORCHS)
        # roundings differ, and a split is drawn from where they led
        most = 0.1 if self.quick else 0.5
        mean, _ = difference(*twins)
        if abs(mean) > most:
            failures.append(f"one launch and six Adams of torch differ by {mean:.2f} dB")
        for arm in ALL:
            exponent = self.best(cells, arm)
            for seed in self.seeds:
                cell = cells[arm.key(exponent, seed)]
                curve = list(cell["psnr"].values())
                if cell["launches"] != self.size.steps:
                    failures.append(f"{arm.key(exponent, seed)}: {cell['launches']} launches")
                if not curve[-1] > curve[0] + 1.0:
                    failures.append(f"{arm.key(exponent, seed)}: {curve[0]} dB, then {curve[-1]}")
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        from ...demo.gaussian_picture import draw

        sides = {}
        for name in GRIDS:
            arm = self.pictured(cells, name)
            exponent = self.best(cells, arm)
            sides[name] = [cells[arm.key(exponent, seed)] for seed in self.seeds]
        remark = "each arm at its own best rates of as many tuning runs"
        draw(path, self.size, sides, remark)


def _compared(name: str, values: list[float], others: list[float], other: str) -> str:
    """Say what the mean difference of paired seeds is."""
    mean, half = difference(values, others)
    verdict = "no difference that the seeds show"
    if abs(mean) > half:
        verdict = "better" if mean > 0 else "worse"
    return f"{name} {mean:+.2f} +- {half:.2f} dB against {other} (95%, paired seeds): {verdict}."
