"""Soft actor-critic on Pendulum-v1: everything in one optimizer beside three Adams and target networks by hand.

Both sides are tuned alike, over the ratio of the critics' rate to the actor's and the rate itself, on seeds that are
not judged. What is to be seen is whether one launch, in which the actor moves by the critics of before, learns as well,
and what an update costs; and whether critics that are faster than the actor gain anything over one tuned rate.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ...game.significance import sign_flip_p_value
from .actor_optimizers import (
    ActorCriticOptimizer,
    CriticsFirst,
    OneLaunch,
    OneLaunchByTurns,
    Rates,
    ThreeAdams,
    ThreeDefaultAdams,
)
from .actor_timing import count, time_updates
from .actor_training import Size, play
from .arm import GRID_STEP
from .experiment import Cell, Cells, Experiment
from .statistics import difference, interval

OPTIMIZERS: dict[str, type[ActorCriticOptimizer]] = {
    "one launch": OneLaunch,
    "critics first": CriticsFirst,
    "three Adams, fused": ThreeAdams,
    "three Adams, default": ThreeDefaultAdams,
}
# turns by `update_every` give the same weights, so they are timed alone
TIMED = {"one launch": OneLaunch, "one launch, update_every": OneLaunchByTurns, **OPTIMIZERS}
OURS, TORCHS = "one launch", "three Adams, fused"
RATIOS = (1.0, 3.0, 10.0)
EXPONENTS = range(-6, -1)  # of the critics' rate, in half decades
LEVEL = 0.05
RANDOM = -1000.0  # a policy that learned nothing gets less
SHAPES = {64: 128, 256: 256}  # rows of a batch by width, of the timed updates


@dataclass(frozen=True)
class Arm:
    """One way to train; ratio: the critics' rate to the actor's. The temperature has the critics'."""

    optimizer: str
    ratio: float
    exponent: int

    def rates(self) -> Rates:
        rate = GRID_STEP**self.exponent
        return Rates(rate, rate / self.ratio, rate)

    def label(self) -> str:
        return f"{self.optimizer}, ratio {self.ratio:.3g}, rate {self.rates().critics:.2g}"

    def key(self, seed: int) -> str:
        return f"{self.label()}, seed {seed}"


class ActorCritic(Experiment):
    name = "actor"
    measures_time = True
    computes_with = ("gymnasium",)
    shows_with = ("matplotlib", "scipy")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.size = Size(16, 32, 1000, 200, 3, 2) if quick else Size()
        self.ratios = (1.0, 3.0) if quick else RATIOS
        self.exponents = range(-5, -4) if quick else EXPONENTS
        self.tuning_seeds = (1000,) if quick else (1000, 1001)
        self.seeds = range(2) if quick else range(10)
        self.timed = {16: 32} if quick else SHAPES

    def settings(self) -> dict[str, Any]:
        return {
            "environment": "Pendulum-v1",
            "size": asdict(self.size),
            "ratios": self.ratios,
            "rates_of_critics": [GRID_STEP**e for e in self.exponents],
            "tuning_seeds": self.tuning_seeds,
            "seeds": list(self.seeds),
            "timed": {str(width): rows for width, rows in self.timed.items()},
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            self._cell(Arm(optimizer, ratio, exponent), seed)
            for seed in self.tuning_seeds
            for optimizer in (OURS, TORCHS)
            for ratio in self.ratios
            for exponent in self.exponents
        ]
        arms = dict.fromkeys((*self.compared(cells), *self.by_ratio(cells)))
        yield [self._cell(arm, seed) for seed in self.seeds for arm in arms]
        rounds = 20 if self.quick else 400
        yield [
            *(Cell(f"count, {name}", partial(count, make)) for name, make in TIMED.items()),
            *(
                Cell(f"time, width {width}", partial(time_updates, TIMED, width, rows, rounds))
                for width, rows in self.timed.items()
            ),
        ]

    def _cell(self, arm: Arm, seed: int) -> Cell:
        make = OPTIMIZERS[arm.optimizer]
        return Cell(arm.key(seed), partial(play, make, arm.rates(), seed, self.size))

    def found(
        self, cells: Cells, arm: Arm, seeds: Sequence[int], what: str = "last"
    ) -> list[float]:
        """Return by seed the mean return of the last episodes of training, or of the policy that was learned."""
        return [cells[arm.key(seed)][what] for seed in seeds]

    def tuned(self, cells: Cells, optimizer: str, ratio: float) -> dict[Arm, float]:
        """Return the mean return of the tuning seeds at each rate."""
        arms = [Arm(optimizer, ratio, exponent) for exponent in self.exponents]
        return {arm: statistics.fmean(self.found(cells, arm, self.tuning_seeds)) for arm in arms}

    def best(self, cells: Cells, optimizer: str, ratio: float) -> Arm:
        """Return an optimizer's best arm at a ratio."""
        scores = self.tuned(cells, optimizer, ratio)
        return max(scores, key=lambda arm: scores[arm])

    def best_of_all(self, cells: Cells, optimizer: str) -> Arm:
        """Return an optimizer's best arm."""
        scores = {a: s for r in self.ratios for a, s in self.tuned(cells, optimizer, r).items()}
        return max(scores, key=lambda arm: scores[arm])

    def by_ratio(self, cells: Cells) -> list[Arm]:
        """Return the arms of one launch, each at its own best rate."""
        return [self.best(cells, OURS, ratio) for ratio in self.ratios]

    def compared(self, cells: Cells) -> list[Arm]:
        """Return the best arm of one launch and that of three Adams, and the others at the latter's rates."""
        ours, torchs = (self.best_of_all(cells, optimizer) for optimizer in (OURS, TORCHS))
        same = [Arm(optimizer, torchs.ratio, torchs.exponent) for optimizer in OPTIMIZERS]
        return list(dict.fromkeys((ours, torchs, *same)))

    def gain(self, cells: Cells, arm: Arm, other: Arm, what: str = "last") -> tuple[float, float]:
        """Return the mean of the paired differences, and half the width of its 95% interval."""
        return difference(*(self.found(cells, a, self.seeds, what) for a in (arm, other)))

    def p_value(self, cells: Cells, ratio: float) -> float:
        """Return how likely signs at random gain as much over one rate, times the number of ratios."""
        sides = [self.found(cells, self.best(cells, OURS, r), self.seeds) for r in (1.0, ratio)]
        gains = [one - other for one, other in zip(*sides, strict=True)]
        return min(1.0, sign_flip_p_value(gains) * (len(self.ratios) - 1))

    def median(self, cells: Cells, width: int, what: str, optimizer: str) -> float:
        """Return the median time of "optimizer" or "update" in microseconds."""
        return statistics.median(cells[f"time, width {width}"][what][optimizer]) / 1e3

    def tables(self, cells: Cells) -> list[Table]:
        from .actor_tables import costs, ratios, returns

        return [returns(self, cells), ratios(self, cells), costs(self, cells)]

    def verdict(self, cells: Cells) -> list[str]:
        ours, torchs = (self.best_of_all(cells, optimizer) for optimizer in (OURS, TORCHS))
        same = {name: Arm(name, torchs.ratio, torchs.exponent) for name in OPTIMIZERS}
        pairs = {"one launch against three fused Adams, each at its best rates": ours}
        if ours != same[OURS]:
            pairs["one launch against three fused Adams, at the rates of the latter"] = same[OURS]
        for name in ("critics first", "three Adams, default"):
            pairs[f"{name}, against three fused Adams, from which only roundings differ"] = same[
                name
            ]
        lines = []
        for what, arm in pairs.items():
            mean, half = self.gain(cells, arm, torchs)
            told = "told apart" if abs(mean) > half else "not told apart"
            lines.append(f"{what}: {mean:+.1f} +- {half:.1f} (95%, paired seeds): {told}.")
        for arm in self.by_ratio(cells):
            if arm.ratio != 1:
                p = self.p_value(cells, arm.ratio)
                mean, half = self.gain(cells, arm, self.best(cells, OURS, 1.0))
                lines.append(
                    f"ratio {arm.ratio:.3g} against one tuned rate: {mean:+.1f} +- {half:.1f}, p = {p:.2g} (sign "
                    f"flips): {'a gain' if p <= LEVEL else 'no gain that the seeds show'}."
                )
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        updates = self.size.steps - self.size.random
        for arm in dict.fromkeys((*self.compared(cells), *self.by_ratio(cells))):
            for seed in self.seeds:
                cell = cells[arm.key(seed)]
                wanted = {OURS: updates, "critics first": updates + updates // 2}
                if cell["launches"] != wanted.get(arm.optimizer):
                    failures.append(f"{arm.key(seed)}: {cell['launches']} launches")
            mean = statistics.fmean(self.found(cells, arm, self.seeds))
            if not self.quick and mean < RANDOM / 2:
                failures.append(f"{arm.label()}: learned little, a mean return of {mean:.0f}")
        if not self.quick:
            ends = self.exponents[0], self.exponents[-1]
            failures += [
                f"{arm.label()}: the best rate is at an end of the grid"
                for optimizer in (OURS, TORCHS)
                for arm in (self.best(cells, optimizer, ratio) for ratio in self.ratios)
                if arm.exponent in ends
            ]
        failures += self._check_first_episodes(cells)
        ops = {name: cells[f"count, {name}"]["operators"] for name in TIMED}
        if not ops[OURS] <= ops["critics first"] < ops[TORCHS] < ops["three Adams, default"]:
            failures.append(f"operators: {ops}")
        return failures

    def _check_first_episodes(self, cells: Cells) -> list[str]:
        """Before roundings have grown, the critics first come to the same as with three Adams."""
        torchs = self.best_of_all(cells, TORCHS)
        episodes = self.size.random // 200 + 1
        failures = []
        for optimizer in ("critics first", "three Adams, default"):
            arm = Arm(optimizer, torchs.ratio, torchs.exponent)
            for seed in self.seeds:
                sides = [cells[a.key(seed)]["returns"][:episodes] for a in (arm, torchs)]
                apart = max(abs(a - b) for a, b in zip(*sides, strict=True))
                if apart > 0.02 * abs(sides[1][-1]):
                    failures.append(f"{arm.key(seed)}: the first episodes differ by {apart:.1f}")
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        from .actor_plot import draw

        draw(self, cells, path)


def say_interval(values: Sequence[float]) -> str:
    """Write a mean with half its 95% interval."""
    mean, half = interval(values)
    return f"{mean:.1f} +- {half:.1f}"
