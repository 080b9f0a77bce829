"""Neurons that have to find their places: one tuned rate beside two time scales, at equal steps.

Marion & Berthier (NeurIPS 2023, arXiv 2304.09576) prove that networks of neurons with positions reach the best fit if
the head is much faster than the positions, and show that one rate for both fails. Their one rate was not tuned, and
had other numbers of steps. Here every arm has the same steps and its own rate, the best in the mean over tuning seeds,
and is judged on other seeds. Seeds are paired: one seed means the same start and the same data everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ...game.significance import sign_flip_p_value
from .experiment import Cell, Cells, Experiment
from .neuron_arms import AS_PUBLISHED, EXACT_HEAD, ONE_RATE, Arm, evaluated_arms, tuned_arms
from .neuron_plots import draw
from .neuron_problems import PROBLEMS, Problem
from .neuron_training import MODES, MOMENTS, train
from .statistics import quartiles

LEVEL = 0.05  # of significance
DIGITS = 6  # significant ones, of the numbers in the JSON
# steps, ratio, rates of the head, and of the body beside an exact head
QUICK: dict[str, tuple[int, float, tuple[int, int], tuple[int, int]]] = {
    "1-D": (10_000, 1e3, (-8, -5), (-13, -12)),
    "2-D": (60, 10, (-1, 0), (-2, -1)),
    "10-D": (60, 10, (0, 1), (-2, -1)),
    "ReLU": (60, 10, (-1, 0), (-2, -1)),
}
QUICK_POINTS = {"10-D": 1000}


class Neurons(Experiment):
    """Final losses by problem and arm."""

    name = "neurons"

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.problems = tuple(map(quickly, PROBLEMS)) if quick else PROBLEMS
        self.tuning_seeds = tuple(range(1000, 1005 if quick else 1008))
        self.seeds = tuple(range(8 if quick else 30))

    def tuning_seeds_of(self, problem: Problem) -> tuple[int, ...]:
        """Return the seeds that choose a problem's rates and its ratio."""
        return self.tuning_seeds[: problem.at_most[0]]

    def seeds_of(self, problem: Problem) -> tuple[int, ...]:
        """Return the seeds that a problem's arms are judged by."""
        return self.seeds[: problem.at_most[1]]

    def settings(self) -> dict[str, Any]:
        problems: dict[str, dict[str, Any]] = {
            problem.name: {
                "steps": problem.steps,
                "ratios": problem.ratios,
                "head_rates": problem.head_rates,
                "body_rates_beside_exact_head": problem.body_rates,
                "variance_of_target": problem.variance,
            }
            for problem in self.problems
        }
        for problem in self.problems:
            if self.seeds_of(problem) != self.seeds:
                problems[problem.name]["first_tuning_seeds"] = len(self.tuning_seeds_of(problem))
                problems[problem.name]["first_seeds"] = len(self.seeds_of(problem))
        return {
            "problems": problems,
            "rates_are": "the first and the last exponent, of half decades",
            "tuning_seeds": self.tuning_seeds,
            "seeds": self.seeds,
            "losses_at": MOMENTS,
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        def stage(part: str, work: Callable[[Cells, Problem, str], Any]) -> list[Cell]:
            return [
                Cell(_key(problem, mode, part), partial(work, cells, problem, mode))
                for problem in self.problems
                for mode in MODES
            ]

        yield stage("tuning", self._tune)
        yield stage("evaluation", self._evaluate)

    def _tune(self, cells: Cells, problem: Problem, mode: str) -> dict[str, Any]:
        """Return by arm and exponent the final losses of the tuning seeds."""
        tries = [(arm, e) for arm in tuned_arms(problem, mode) for e in arm.exponents(problem)]
        results = train(
            problem, mode, self.tuning_seeds_of(problem), [arm.rates(e) for arm, e in tries]
        )
        found: dict[str, Any] = {arm.label: {} for arm, _ in tries}
        for (arm, e), result in zip(tries, results, strict=True):
            found[arm.label][str(e)] = _rounded(result["losses"][-1])
        return found

    def _evaluate(self, cells: Cells, problem: Problem, mode: str) -> dict[str, Any]:
        """Return by arm the losses of the evaluation seeds at its rate, and networks to plot."""
        arms = evaluated_arms(problem, mode)
        rates = [arm.rates(self.exponent(cells, problem, arm)) for arm in arms]
        plotted = problem.name == "1-D" and mode == "simultaneous"
        kept = ("losses", "positions", "head") if plotted else ("losses",)
        once = list(dict.fromkeys(rates))  # the best rate may be the published one
        results = dict(zip(once, train(problem, mode, self.seeds_of(problem), once), strict=True))
        return {
            arm.label: {name: [_rounded(row) for row in results[pair][name]] for name in kept}
            for arm, pair in zip(arms, rates, strict=True)
        }

    def tuned(self, cells: Cells, problem: Problem, arm: Arm) -> dict[int, float]:
        """Return the mean loss of the tuning seeds by exponent."""
        losses = cells[_key(problem, arm.mode, "tuning")][arm.label]
        return {int(e): sum(values) / len(values) for e, values in losses.items()}

    def exponent(self, cells: Cells, problem: Problem, arm: Arm) -> int:
        """Return the exponent of an arm's rate in the evaluation."""
        if arm.published:
            return problem.published_rate
        means = self.tuned(cells, problem, arm)
        return min(means, key=lambda e: (means[e], e))

    def two_time_scales(self, cells: Cells, problem: Problem) -> Arm:
        """Return the simultaneous arm of a ratio above 1 that was best with the tuning seeds."""
        arms = [arm for arm in tuned_arms(problem, "simultaneous") if arm != ONE_RATE]
        return min(arms, key=lambda arm: min(self.tuned(cells, problem, arm).values()))

    def result(self, cells: Cells, problem: Problem, arm: Arm) -> dict[str, Any]:
        """Return what an arm's evaluation has found."""
        found: dict[str, Any] = cells[_key(problem, arm.mode, "evaluation")][arm.label]
        return found

    def losses(self, cells: Cells, problem: Problem, arm: Arm) -> list[float]:
        """Return the final losses of the evaluation seeds."""
        last: list[float] = self.result(cells, problem, arm)["losses"][-1]
        return last

    def median(self, cells: Cells, problem: Problem, arm: Arm) -> float:
        """Return the median of the final losses of the evaluation seeds."""
        return quartiles(self.losses(cells, problem, arm))[1]

    def recovered(self, cells: Cells, problem: Problem, arm: Arm) -> str:
        """Return how many of the evaluation seeds recovered the target."""
        losses = self.losses(cells, problem, arm)
        return f"{sum(loss < problem.recovered for loss in losses)} of {len(losses)}"

    def p_value(self, cells: Cells, problem: Problem, arm: Arm) -> float:
        """Return the p-value of an arm against one tuned rate, times the number of arms that are compared with it."""
        pairs = (self.losses(cells, problem, a) for a in (arm, ONE_RATE))
        p = sign_flip_p_value([a - b for a, b in zip(*pairs, strict=True)])
        return min(1.0, p * (len(tuned_arms(problem)) - 1))

    def tables(self, cells: Cells) -> list[Table]:
        tables = []
        for problem in self.problems:
            seeds = len(self.seeds_of(problem))
            table = Table(
                title=f"{problem.name}: loss after {problem.steps:,} steps, {seeds} seeds"
            )
            for column in ("arm", "rates", "median", "quartiles", "recovered", "p"):
                table.add_column(column)
            for arm in evaluated_arms(problem):
                low, middle, high = quartiles(self.losses(cells, problem, arm))
                body, head = arm.rates(self.exponent(cells, problem, arm))
                compared = arm not in (ONE_RATE, AS_PUBLISHED)
                table.add_row(
                    arm.label,
                    f"{body:.2g}, {head:.2g}" if head else f"{body:.2g}",
                    f"{middle:.3g}",
                    f"{low:.3g} .. {high:.3g}",
                    self.recovered(cells, problem, arm),
                    say_p(self.p_value(cells, problem, arm)) if compared else "",
                )
            tables.append(table)
        return tables

    def verdict(self, cells: Cells) -> list[str]:
        lines = []
        for problem in self.problems:
            arm = self.two_time_scales(cells, problem)
            p = self.p_value(cells, problem, arm)
            medians = [self.median(cells, problem, a) for a in (AS_PUBLISHED, ONE_RATE, arm)]
            counts = [self.recovered(cells, problem, a) for a in (ONE_RATE, arm)]
            lines.append(
                f"{problem.name}: the gain of two time scales {'survives' if p <= LEVEL else 'does not survive'} the "
                f"tuning of one rate. Median loss: {medians[0]:.3g} at one rate as published, {medians[1]:.3g} at one "
                f"tuned rate, {medians[2]:.3g} at {arm.label}, which the tuning seeds chose (p {say_p(p, '= ')}, sign "
                f"flips). The target is recovered by {counts[0]} seeds at one tuned rate and by {counts[1]} at "
                f"{arm.label}. Published: {problem.published}."
            )
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        for problem in self.problems:
            for arm in tuned_arms(problem):
                means, best = self.tuned(cells, problem, arm), self.exponent(cells, problem, arm)
                where = f"{problem.name}, {arm.label}"
                if not math.isfinite(means[best]):
                    failures.append(f"{where}: diverged at every rate")
                if not self.quick and best in (min(means), max(means)):
                    failures.append(f"{where}: the best rate is at an end of the grid")
            arm = self.two_time_scales(cells, problem)
            if self.quick and problem.name != "1-D":
                arm = EXACT_HEAD  # too few steps for any other head
            slow, fast = (self.median(cells, problem, a) for a in (AS_PUBLISHED, arm))
            if not fast < slow:
                failures.append(
                    f"{problem.name}: {arm.label} is not better than one rate as published"
                )
        problem = self.problems[0]
        arm = self.two_time_scales(cells, problem)
        if self.p_value(cells, problem, arm) > LEVEL:
            failures.append(f"{problem.name}: {arm.label} is not told apart from one tuned rate")
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        draw(self, cells, path)


def quickly(problem: Problem) -> Problem:
    """Return the problem with few steps, ratios and rates, and with few points where there are too many."""
    steps, ratio, head_rates, body_rates = QUICK[problem.name]
    points = QUICK_POINTS.get(problem.name)
    if points:
        data = partial(problem.data, points=points)
        problem = replace(
            problem, data=data, points=points, size=points * problem.size // (problem.points or 1)
        )
    return replace(
        problem,
        steps=steps,
        ratios={"simultaneous": (1, ratio), "alternating": (ratio,)},
        head_rates=head_rates,
        body_rates=body_rates,
    )


def say_p(p: float, equal: str = "") -> str:
    """Write a p-value; 10 000 drawn signs tell nothing about much smaller ones."""
    return "< 0.001" if p < 0.001 else f"{equal}{p:.2g}"


def _key(problem: Problem, mode: str, part: str) -> str:
    return f"{problem.name}, {mode}, {part}"


def _rounded(values: list[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
