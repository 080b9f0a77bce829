"""Search for a learning rate of each group by short training runs on the user's model and batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..groups.option_types import Tied
from ..groups.split import Head, split_body_head
from ..optimizers.adam import StackelbergAdamW
from ..warning import warn_caller
from .rate_study import Measured, RateStudy, open_storage
from .search_progress import SearchProgress
from .short_runs import head_by_name, seeded, short_run_loss
from .significance import p_values_against_one

ONE, EACH = "one rate", "rates by group"
FIRST_SEED = 1000  # of the runs that compare: no rate was chosen by them


@dataclass(frozen=True)
class RateSearch:
    """One rate for all groups, and a rate for each, both tuned with the same budget, and which of them is recommended.

    The loss of a run is the mean over its last quarter, or infinity if the run diverged.

    Attributes:
        names: of the groups.
        one_rate: the best rate for all groups.
        rates: by name of a group: its rate where each has its own.
        losses: of "one rate" and "rates by group": the loss for each seed of runs that chose no rate.
        p_value: of a sign-flip test (Fisher 1935; see `sign_flip_p_value`) that rates by group are better, with the
            same seeds. It is at least 2**-seeds; NaN if all seeds gave equal runs.
        recommended: by name of a group: its rate; the same for all unless rates by group are significantly better.
        at_edge: groups whose rate is within a twentieth of the searched range of one of its ends.
        trials: of "one rate" and "rates by group": what was measured of each rate, or rates, that were tried.
        seeds: the number of runs in `losses`.
    """

    names: list[str]
    one_rate: float
    rates: dict[str, float]
    losses: dict[str, list[float]]
    p_value: float
    recommended: dict[str, float]
    at_edge: list[str]
    trials: dict[str, list[Measured]]
    seeds: int

    def table(self) -> str:
        """Return a text table: the rate of each group both ways, then the losses."""
        lines = [f"{'group':>20}{ONE:>16}{EACH:>16}"]
        for name in self.names:
            edge = " (near the end of the range)" if name in self.at_edge else ""
            lines.append(f"{name:>20.20}{self.one_rate:>16.3g}{self.rates[name]:>16.3g}{edge}")
        for label, of in (("loss, median", statistics.median), ("smallest", min), ("largest", max)):
            values = [f"{of(self.losses[kind]):>16.5g}" for kind in (ONE, EACH)]
            lines.append(f"{label:>20}{''.join(values)}")
        return "\n".join(lines)

    def verdict(self) -> str:
        """Return the recommendation as a sentence."""
        if len(set(self.recommended.values())) == 1 and self.recommended != self.rates:
            beyond = (
                ""
                if math.isnan(self.p_value)
                else f" beyond chance: p = {self.p_value:.2g} with {self.seeds} seeds"
            )
            return f"One rate for all groups, {self.one_rate:.3g}: rates by group were not better{beyond}."
        chosen = ", ".join(f"{name} {rate:.3g}" for name, rate in self.rates.items())
        if math.isnan(self.p_value):
            return (
                f"Rates by group ({chosen}) were best. All seeds gave the same runs, so that nothing is known of "
                "chance."
            )
        return (
            f"Rates by group ({chosen}): better than one rate tuned with the same budget, p = {self.p_value:.2g} with "
            f"{self.seeds} seeds; after short runs: long ones may differ."
        )

    def plot(self, path: str | Path) -> None:
        """Write a picture to `path`: the loss over each group's rate, and the losses of both ways by seed.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .rate_plot import draw

        draw(self, path)


def find_rates(
    model: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    groups: Callable[[nn.Module], Iterable[dict[str, Any]]] | None = None,
    head: Head = None,
    tied: Tied = "error",
    lrs: tuple[float, float] = (1e-5, 1e-1),
    budget: int = 40,
    steps: int = 100,
    tuning_seeds: int = 3,
    seeds: int = 8,
    level: float = 0.05,
    optimizer: Callable[..., torch.optim.Optimizer] = StackelbergAdamW,
    path: str | Path | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> RateSearch:
    """Search for one rate for all groups and for a rate for each, and say whether the latter is worth it.

    Both searches may try `budget` points, by Optuna's TPE (Bergstra et al. 2011) on a logarithmic scale. A point that
    diverges, or whose median after some seeds is above the median of those before, is given up. The best points of both
    are then run with seeds by which neither was chosen, and compared in pairs. `find_ratio` says what a seed sets.

    Args:
        model: a module, which is copied for each run, or a callable that returns a new module.
        batches: any iterable; it is read once. A run cycles through the batches in an order that the seed sets.
        loss_fn: `loss = loss_fn(model, batch)`, a tensor of one element.
        groups: `groups(model)` makes param groups, each with parameters; an "lr" in them does not count. A "name" in
            one names it in the result. None: `split_body_head(model, head=head, tied=tied)`.
        head, tied: as in `split_body_head`.
        lrs: the smallest and the largest rate to try.
        budget: the number of points that each of the two searches tries, >= 1.
        steps: the number of steps of a run, >= 1.
        tuning_seeds: the number of runs of each point, >= 1: its loss is their median.
        seeds: the number of runs that compare the best points, >= 1.
        level: the significance level: the largest p-value at which rates by group are recommended.
        optimizer: a class, called with the groups and `settings`.
        path: a file that keeps the search: a call with the same arguments goes on where the last one ended. A larger
            `budget` goes on too.
        progress: show the cost and a bar with the time left on standard error. None: where that is a terminal.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: an argument does not fit, a group is empty, the file is of another search, or every run with one
            rate diverged. Nothing was run then, but in the last case.

    Warns:
        UserWarning: the p-value cannot reach `level` with so few seeds.
    """
    batches = list(batches)
    low, high = _checked_range(lrs)
    for name, value in (
        ("budget", budget),
        ("steps", steps),
        ("tuning_seeds", tuning_seeds),
        ("seeds", seeds),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"find_rates() needs {name} >= 1, got {value!r}")
    if not batches:
        raise ValueError("find_rates() needs batches")
    by_name = head_by_name(model, head)

    def made(of: nn.Module) -> list[dict[str, Any]]:
        found = split_body_head(of, head=by_name, tied=tied) if groups is None else groups(of)
        return [{**group, "params": list(group["params"])} for group in found]

    with seeded(0):
        names = _names(made(model if isinstance(model, nn.Module) else model()))
    storage = open_storage(path)

    def run(rates: list[float], seed: int) -> float:
        def with_rates(of: nn.Module) -> list[dict[str, Any]]:
            return [{**group, "lr": rate} for group, rate in zip(made(of), rates, strict=True)]

        return short_run_loss(
            model, batches, loss_fn, with_rates, optimizer, settings, steps, seed, bar.advance
        )

    described = {"names": names, "lrs": [low, high], "steps": steps, "tuning_seeds": tuning_seeds}
    described |= {"settings": {key: repr(value) for key, value in settings.items()}}
    studies = {
        kind: RateStudy(storage, kind, groups_of_rates, (low, high), described)
        for kind, groups_of_rates in ((ONE, [names]), (EACH, [[name] for name in names]))
    }
    total = 2 * (budget * tuning_seeds + seeds) * steps
    losses: dict[str, list[float]] = {}
    with SearchProgress("find_rates", total, progress) as bar:
        bar.print(
            f"find_rates: 2 searches x {budget} points x at most {tuning_seeds} runs, then 2 x {seeds} runs, "
            f"of {steps} steps each: at most {total} steps"
        )
        for study in studies.values():
            study.search(run, budget, tuning_seeds, steps, bar)
        if not math.isfinite(studies[ONE].best.loss):
            raise ValueError("every run with one rate for all groups diverged: try smaller lrs")
        for kind, study in studies.items():
            losses[kind] = study.compare(run, range(FIRST_SEED, FIRST_SEED + seeds), steps, bar)
    return _result(names, studies, losses, level, (low, high))


def _checked_range(lrs: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, lrs)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise ValueError(f"lrs must be two finite rates, 0 < smallest < largest, got {lrs!r}")
    return low, high


def _names(groups: list[dict[str, Any]]) -> list[str]:
    """Return a name for each group."""
    names: list[str] = []
    for i, group in enumerate(groups):
        name = str(group.get("name") or group.get("role") or f"group {i}")
        if not group["params"]:
            raise ValueError(f"find_rates(): group {i} ({name}) has no parameters")
        names.append(name if name not in names else f"{name} {i}")
    if not names:
        raise ValueError("find_rates() needs at least one group")
    return names


def _result(
    names: list[str],
    studies: dict[str, RateStudy],
    losses: dict[str, list[float]],
    level: float,
    lrs: tuple[float, float],
) -> RateSearch:
    """Compare the best points."""
    one_rate, seeds = studies[ONE].best.rates[0], len(losses[ONE])
    rates = dict(zip(names, studies[EACH].best.rates, strict=True))
    p_value = p_values_against_one({1.0: losses[ONE], 2.0: losses[EACH]})[2.0]
    is_better = statistics.median(losses[EACH]) < statistics.median(losses[ONE])
    wins = len(names) > 1 and is_better and (math.isnan(p_value) or p_value <= level)
    margin = (lrs[1] / lrs[0]) ** 0.05
    at_edge = [n for n, rate in rates.items() if not lrs[0] * margin < rate < lrs[1] / margin]
    if not math.isnan(p_value) and 2.0**-seeds > level:
        warn_caller(
            f"find_rates() cannot tell rates by group from chance with seeds={seeds} at level={level:g}"
        )
    trials = {kind: study.measured for kind, study in studies.items()}
    recommended = rates if wins else dict.fromkeys(names, one_rate)
    return RateSearch(names, one_rate, rates, losses, p_value, recommended, at_edge, trials, seeds)
