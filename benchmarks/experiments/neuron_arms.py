"""The arms of the neurons experiment."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .arm import GRID_STEP
from .neuron_problems import Problem


@dataclass(frozen=True)
class Arm:
    """One way to train, at any rate of the grid.

    Attributes:
        mode: "simultaneous", "alternating" (the head steps first) or "exact head".
        ratio: the head's rate relative to the body's; infinite beside an exact head, which has no rate.
        published: the rate is the one that others took, not the best.
    """

    mode: str
    ratio: float
    published: bool = False

    @property
    def label(self) -> str:
        """Name the arm in tables, plots and results."""
        if self.mode == "exact head":
            return self.mode
        if self.ratio == 1 and self.mode == "simultaneous":
            return "one rate, as published" if self.published else "one rate, tuned"
        return f"{'head first, ' if self.mode == 'alternating' else ''}ratio {self.ratio:g}"

    def rates(self, exponent: int) -> tuple[float, float]:
        """Return the rates of body and head; the exponent is the head's, or the body's beside an exact head."""
        rate = GRID_STEP**exponent
        return (rate, 0.0) if self.mode == "exact head" else (rate / self.ratio, rate)

    def exponents(self, problem: Problem) -> range:
        """Return the exponents of the rates to try."""
        low, high = problem.body_rates if self.mode == "exact head" else problem.head_rates
        return range(low, high + 1)


ONE_RATE = Arm("simultaneous", 1)
AS_PUBLISHED = replace(ONE_RATE, published=True)
EXACT_HEAD = Arm("exact head", math.inf)


def tuned_arms(problem: Problem, mode: str | None = None) -> list[Arm]:
    """Return the arms whose rate is tuned, of one mode or of all."""
    arms = [Arm(m, ratio) for m, ratios in problem.ratios.items() for ratio in ratios]
    return [arm for arm in (*arms, EXACT_HEAD) if mode in (None, arm.mode)]


def evaluated_arms(problem: Problem, mode: str | None = None) -> list[Arm]:
    """Return the arms that run with the evaluation seeds, of one mode or of all."""
    return [arm for arm in (AS_PUBLISHED, *tuned_arms(problem)) if mode in (None, arm.mode)]
