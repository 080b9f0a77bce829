"""Rates by kind of parameter in a small GPT beside one tuned rate: embeddings, matrices, norms and biases, the head.

Codes that train GPTs fast give the embeddings a rate 50 to 100 times the head's: modded-nanogpt 0.3 and 1/320, nanochat
0.2 and 0.004. That is the opposite of a fast head. `find_rates` searches here one rate and rates by kind, with as many
points each. Others have rates in fixed ratios, whose common factor is searched with as many points. All are judged
with seeds that chose nothing. Seeds are paired: one seed means the same start and the same batches everywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ...game.rate_search import EACH, ONE
from ...game.significance import sign_flip_p_value
from .experiment import Cell, Cells, Experiment
from .kind_arms import ARMS, BY_KIND, FAST_EMBEDDINGS, IN_RATIOS, KINDS, ONE_RATE, Arm
from .kind_search import LRS, QUICK, Searches, Size
from .statistics import difference, interval

LEVEL = 0.05  # of significance
OF_BOTH = "one rate, and rates by kind"
NEIGHBOURS = (0.5, 0.7, 1.4)  # times the best one rate: does another suit the judged seeds better?
LONGER = 3  # times as many steps, at the same rates: does the gain last?


class Kinds(Experiment):
    """Final validation losses by arm."""

    name = "kinds"
    computes_with = ("optuna",)
    shows_with = ("matplotlib", "scipy")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.size = QUICK if quick else Size()
        self.searches = Searches(self.size)

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.searches.data(),
            "size": vars(self.size),
            "lrs": LRS,
            "kinds": KINDS,
            "ratios": {arm.label: arm.ratios for arm in ARMS},
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            Cell(OF_BOTH, partial(self._search, OF_BOTH, self.searches.by_kind)),
            *(
                Cell(
                    arm.label,
                    partial(self._search, arm.label, partial(self.searches.in_ratios, arm)),
                )
                for arm in IN_RATIOS
            ),
        ]
        yield [
            *(self._neighbour(cells, times) for times in NEIGHBOURS),
            *(self._longer(cells, arm) for arm in (ONE_RATE, BY_KIND, FAST_EMBEDDINGS)),
            *(self._longer(cells, ONE_RATE, times) for times in NEIGHBOURS),
        ]

    def _neighbour(self, cells: Cells, times: float) -> Cell:
        rates = [times * rate for rate in self.rates(cells, ONE_RATE).values()]
        size = self.size
        work = partial(self.searches.judged, rates, size.seeds, size.steps)
        return Cell(f"{ONE_RATE.label} x {times:g}", work)

    def _longer(self, cells: Cells, arm: Arm, times: float = 1.0) -> Cell:
        rates = [times * rate for rate in self.rates(cells, arm).values()]
        size = self.size
        work = partial(self.searches.judged, rates, size.seeds // 2, LONGER * size.steps)
        return Cell(_longer_key(arm, times), work)

    def _search(self, key: str, search: Any) -> dict[str, Any]:
        """Search, and keep in a file what was found until the search is finished."""
        path = self._unfinished(key)
        found: dict[str, Any] = search(path)
        if path is not None:
            path.unlink()
        return found

    def _unfinished(self, key: str) -> Path | None:
        if self.folder is None:
            return None
        described = json.dumps([self.settings(), key]).encode()
        return self.folder / f"{self.name}-{hashlib.sha256(described).hexdigest()[:12]}.search"

    def _found(self, cells: Cells, arm: Arm) -> tuple[dict[str, Any], str]:
        """Return what the search of an arm has found, and the name in it."""
        if arm in (ONE_RATE, BY_KIND):
            return cells[OF_BOTH], EACH if arm == BY_KIND else ONE
        return cells[arm.label], ONE

    def rates(self, cells: Cells, arm: Arm) -> dict[str, float]:
        """Return the rate of each kind."""
        found, _ = self._found(cells, arm)
        if arm.ratios is None:
            return dict(found["rates"])
        return {kind: found["one_rate"] * r for kind, r in zip(KINDS, arm.ratios, strict=True)}

    def losses(self, cells: Cells, arm: Arm) -> list[float]:
        """Return the validation loss of each seed that chose nothing."""
        found, name = self._found(cells, arm)
        return list(found["losses"][name])

    def tried(self, cells: Cells, arm: Arm) -> list[float]:
        """Return the tuning loss of each point that was tried, infinity if it was given up."""
        found, name = self._found(cells, arm)
        return [point["loss"] for point in found["trials"][name]]

    def p_value(self, cells: Cells, arm: Arm) -> float:
        """Return the p-value of an arm against one rate, times the number of arms that are compared with it."""
        pairs = zip(self.losses(cells, arm), self.losses(cells, ONE_RATE), strict=True)
        return min(1.0, sign_flip_p_value([a - b for a, b in pairs]) * (len(ARMS) - 1))

    def at_edge(self, cells: Cells) -> list[str]:
        """Return which rates are near an end of the range that was searched."""
        both = cells[OF_BOTH]["at_edge"]
        return [
            *(f"{BY_KIND.label}, {name}" for name in both if name != ONE),
            *([ONE_RATE.label] if ONE in both else []),
            *(arm.label for arm in IN_RATIOS if cells[arm.label]["at_edge"]),
        ]

    def tables(self, cells: Cells) -> list[Table]:
        size = self.size
        rates = Table(title=f"best rates of {size.budget} points")
        for column in ("arm", *KINDS):
            rates.add_column(column)
        losses = Table(title=f"validation loss after {size.steps} steps, {size.seeds} seeds")
        for column in ("arm", "mean, 95% interval", "difference to one rate", "p"):
            losses.add_column(column)
        control = self.losses(cells, ONE_RATE)
        for arm in ARMS:
            rates.add_row(arm.label, *(f"{r:.2g}" for r in self.rates(cells, arm).values()))
            found = self.losses(cells, arm)
            losses.add_row(
                arm.label,
                _said(*interval(found)),
                "" if arm == ONE_RATE else _said(*difference(found, control), sign="+"),
                "" if arm == ONE_RATE else f"{self.p_value(cells, arm):.2g}",
            )
        return [rates, losses]

    def verdict(self, cells: Cells) -> list[str]:
        control = self.losses(cells, ONE_RATE)
        better, others = [], []
        for arm in ARMS[1:]:
            mean, half = difference(self.losses(cells, arm), control)
            p = self.p_value(cells, arm)
            said = f"{arm.label} ({_said(mean, half, sign='+')}, p = {p:.2g})"
            (better if p <= LEVEL else others).append(said)
        rates = self.rates(cells, BY_KIND)
        beyond = difference(self.losses(cells, BY_KIND), self.losses(cells, FAST_EMBEDDINGS))
        lines = [
            f"better than one tuned rate beyond chance: {', '.join(better) or 'nothing'}; "
            f"not: {', '.join(others) or 'nothing'}",
            f"find_rates: {cells[OF_BOTH]['verdict']}",
            f"rates by kind: the embeddings' is {rates['embeddings'] / rates['head']:.2g} times the head's, and "
            f"{rates['embeddings'] / rates['matrices']:.2g} times that of the matrices; they differ from "
            f"{FAST_EMBEDDINGS.label} by {_said(*beyond, sign='+')}",
            self._when(cells),
            self._beside_neighbours(cells),
            self.after_longer_runs(cells),
        ]
        if self.at_edge(cells):
            lines.append(f"near an end of the range: {', '.join(self.at_edge(cells))}")
        return lines

    def _beside_neighbours(self, cells: Cells) -> str:
        """Say whether the judged seeds would have liked another one rate better."""
        rate = self.rates(cells, ONE_RATE)["head"]
        found = {times * rate: cells[f"one rate x {times:g}"] for times in NEIGHBOURS}
        found[rate] = self.losses(cells, ONE_RATE)
        means = {at: statistics.fmean(losses) for at, losses in sorted(found.items())}
        best = min(means, key=means.__getitem__)
        gain = difference(self.losses(cells, BY_KIND), found[best])
        return (
            f"one rate with the judged seeds: {', '.join(f'{m:.4f} at {at:.2g}' for at, m in means.items())}; rates by "
            f"kind differ from the best of these, which the judged seeds choose, by {_said(*gain, sign='+')}"
        )

    def after_longer_runs(self, cells: Cells) -> str:
        """Say what is left of the gain in longer runs, beside the one rate that suits them best by their own seeds."""
        one = [cells[_longer_key(ONE_RATE, times)] for times in (1.0, *NEIGHBOURS)]
        best = min(one, key=statistics.fmean)
        rate = (1.0, *NEIGHBOURS)[one.index(best)] * self.rates(cells, ONE_RATE)["head"]
        gains = [
            f"{arm.label} {_said(*difference(cells[_longer_key(arm)], best), sign='+')}"
            for arm in (BY_KIND, FAST_EMBEDDINGS)
        ]
        return (
            f"after {LONGER * self.size.steps} steps at these rates, {len(best)} seeds: one rate "
            f"{statistics.fmean(best):.4f} (at {rate:.2g}, the best of {len(one)}); beside it {', '.join(gains)}"
        )

    def _when(self, cells: Cells) -> str:
        """Say which point of the search by kind was the first that was better than the best one rate."""
        best = min(self.tried(cells, ONE_RATE))
        tried = self.tried(cells, BY_KIND)
        first = next((i for i, loss in enumerate(tried, start=1) if loss < best), None)
        if first is None:
            return f"no point of the search by kind was better in tuning than one rate ({best:.4f})"
        return (
            f"in tuning, point {first} of {len(tried)} by kind was the first that was better than one rate: "
            f"{tried[first - 1]:.4f} and {best:.4f}; the best has {min(tried):.4f}"
        )

    def check(self, cells: Cells) -> list[str]:
        failures = []
        for arm in ARMS:
            tried, losses = self.tried(cells, arm), self.losses(cells, arm)
            if len(tried) != self.size.budget:
                failures.append(f"{arm.label}: {len(tried)} points instead of {self.size.budget}")
            if len(losses) != self.size.seeds:
                failures.append(f"{arm.label}: {len(losses)} seeds instead of {self.size.seeds}")
            if not statistics.median(losses) < math.log(256):
                failures.append(f"{arm.label}: has learned nothing")
        if min(self.tried(cells, BY_KIND)) > min(self.tried(cells, ONE_RATE)):
            failures.append("the search by kind did not begin at the best one rate")
        if not self.quick:
            failures += [
                f"{label}: the best rate is at an end of the range"
                for label in self.at_edge(cells)
                if not label.startswith(BY_KIND.label)
            ]
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        from .kinds_plot import draw

        draw(self, cells, path)


def _longer_key(arm: Arm, times: float = 1.0) -> str:
    return f"{arm.label} x {times:g}, {LONGER} times as many steps"


def _said(mean: float, half: float, sign: str = "") -> str:
    return f"{mean:{sign}.4f} ± {half:.4f}"
