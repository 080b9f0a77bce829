"""Search for a learning rate of each group by short training runs on the user's model and batches."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups.option_types import Tied
from ..groups.split import Head, split_body_head
from ..optimizers.adam import StackelbergAdamW
from ..warning import warn_caller
from .rate_groups import elements, param_groups, unique_names
from .rate_search import EACH, ONE, RateSearch
from .rate_study import RateStudy
from .search_file import described_value, open_storage
from .search_progress import SearchProgress
from .short_runs import (
    Evaluate,
    Schedule,
    head_by_name,
    new_modules,
    seeded,
    short_run_loss,
)
from .significance import checked_level, least_p_value, p_values_against_one

FIRST_SEED = 1000  # of the runs that compare: no rate was chosen by them


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
    schedule: Schedule | None = None,
    evaluate: Evaluate | None = None,
    path: str | Path | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> RateSearch:
    """Search for one rate for all groups and for a rate for each, and say whether the latter is worth it.

    Both searches may try `budget` points, by Optuna's TPE (Bergstra et al. 2011) on a logarithmic scale. The search by
    group begins at the best one rate, which counts as one of its points. A point is given up if it diverges; or, once
    five points are finished, if the smallest of its medians after one seed, two, and so on is above the median of what
    finished points had after as many seeds. The best points of both are then run with new seeds, by which neither was
    chosen, on the same batches, and compared in pairs. `find_ratio` says what a seed sets. With one group there is one
    search, and nothing is compared.

    The p-value holds for a budget and a number of seeds that were chosen beforehand. Who looks at it and raises them
    until it is small finds small ones by chance: after five looks, more than twice as often as `level` says.

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
        tuning_seeds: the number of runs of each point, 1 to 1000: its loss is their median.
        seeds: the number of runs that compare the best points, >= 1.
        level: the significance level, between 0 and 1: the largest p-value at which rates by group are recommended.
        optimizer: a class, called with the groups and `settings`.
        schedule: `schedule(optimizer)` makes a scheduler, such as one of torch's, whose `step()` is called after each
            step of a run. The rates that are searched are those it begins with. None: rates stay what they are.
        evaluate: `evaluate(model)` returns the loss by which a run counts, such as that on held-out data. It is called
            after the last step, without gradients, the model in evaluation mode. None: the mean training loss over the
            last quarter of the run.
        path: a file that keeps the search: a call with the same arguments goes on where the last one ended. A larger
            `budget` goes on too, and of a smaller one the first points count. Names and sizes of groups, `lrs`,
            `steps`, `tuning_seeds`, the number of batches, the names of `optimizer`, `schedule` and `evaluate`, and
            `settings` have to be the same. What is in `model`, `batches` and the functions is not checked.
        progress: show the cost and a bar with the time left on standard error. None: where that is a terminal.
        **settings: of the optimizer, but not "lr" and "head_lr_ratio", which are what is searched.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: an argument does not fit, a group is empty, `path` is a folder, no file of a search or one of
            another search, `model()` returned a module twice, or every run with one rate diverged. No step was taken
            then, but in the last case.
        RuntimeError: another search has the file open.

    Warns:
        UserWarning: the p-value cannot reach `level` with so few seeds.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batches = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(4)]
        >>> def loss_fn(model, batch):
        ...     return nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> few = {"budget": 2, "steps": 2, "tuning_seeds": 1, "seeds": 5}  # an example
        >>> found = sf.find_rates(model, batches, loss_fn, head="2", **few)
        >>> list(found.recommended)
        ['body', 'head']
    """
    batches = list(batches)
    low, high = _checked_range(lrs)
    budget, steps, seeds = (
        _checked_count(name, value)
        for name, value in (("budget", budget), ("steps", steps), ("seeds", seeds))
    )
    tuning_seeds = _checked_count("tuning_seeds", tuning_seeds, FIRST_SEED)
    level = checked_level("find_rates", level)
    for name in ("lr", "head_lr_ratio"):
        if name in settings:
            raise ValueError(f"find_rates() searches the rates: leave out {name}; lrs is the range")
    if not batches:
        raise ValueError("find_rates() needs batches")
    by_name, new_module = head_by_name(model, head), new_modules(model)

    def made(of: nn.Module) -> list[dict[str, Any]]:
        return param_groups(
            split_body_head(of, head=by_name, tied=tied) if groups is None else groups(of)
        )

    with seeded(0):
        looked_at = made(model if isinstance(model, nn.Module) else new_module())
    names = unique_names(looked_at, (ONE, EACH))
    described = {
        "names": names,
        "elements": elements(looked_at),
        "lrs": [low, high],
        "steps": steps,
        "tuning_seeds": tuning_seeds,
        "batches": len(batches),
        "optimizer": described_value(optimizer),
        "schedule": None if schedule is None else described_value(schedule),
        "evaluate": None if evaluate is None else described_value(evaluate),
        "settings": {key: described_value(value) for key, value in settings.items()},
    }
    del looked_at

    def run(rates: list[float], seed: int) -> float:
        def with_rates(of: nn.Module) -> list[dict[str, Any]]:
            return [{**group, "lr": rate} for group, rate in zip(made(of), rates, strict=True)]

        return short_run_loss(
            new_module,
            batches,
            loss_fn,
            with_rates,
            optimizer,
            settings,
            steps,
            seed,
            bar.advance,
            schedule,
            evaluate,
        )

    kinds = {ONE: [names]} | ({EACH: [[name] for name in names]} if len(names) > 1 else {})
    total = len(kinds) * (budget * tuning_seeds + seeds) * steps
    losses: dict[str, list[float]] = {}
    with (
        open_storage(path, (ONE, EACH)) as storage,
        SearchProgress("find_rates", total, progress) as bar,
        warnings.catch_warnings(),
    ):
        # points at which the body is the faster part are tried on purpose
        warnings.filterwarnings("ignore", "the body's learning rate .* is above the head's")
        studies = {
            kind: RateStudy(storage, kind, together, (low, high), budget, described)
            for kind, together in kinds.items()
        }
        bar.print(
            f"find_rates: {_searches(len(kinds))} x {budget} points x at most {tuning_seeds} runs, "
            f"then {len(kinds)} x {seeds} runs, of {steps} steps each: at most {total} steps"
        )
        studies[ONE].search(run, tuning_seeds, steps, bar)
        best = studies[ONE].best
        if not math.isfinite(best.loss):
            raise ValueError("every run with one rate for all groups diverged: try smaller lrs")
        if EACH in studies:
            studies[EACH].start_at(best)
            studies[EACH].search(run, tuning_seeds, steps, bar)
        for kind, study in studies.items():
            if kind == EACH and study.best == best:
                losses[kind] = losses[ONE].copy()
                bar.advance(seeds * steps)
            else:
                new_seeds = range(FIRST_SEED, FIRST_SEED + seeds)
                losses[kind] = study.compare(run, new_seeds, steps, bar)
        return _result(names, studies, losses, level, (low, high))


def _searches(count: int) -> str:
    return "1 search" if count == 1 else f"{count} searches"


def _checked_range(lrs: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, lrs)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise ValueError(f"lrs must be two finite rates, 0 < smallest < largest, got {lrs!r}")
    return low, high


def _checked_count(name: str, value: Any, most: int | None = None) -> int:
    """Return an integer, NumPy's included, of at least 1."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or not 1 <= value <= (value if most is None else most)
    ):
        at_most = "" if most is None else f" and <= {most}"
        raise ValueError(f"find_rates() needs {name} >= 1{at_most}, got {value!r}")
    return int(value)


def _result(
    names: list[str],
    studies: dict[str, RateStudy],
    losses: dict[str, list[float]],
    level: float,
    lrs: tuple[float, float],
) -> RateSearch:
    """Compare the best points."""
    one_rate, seeds = studies[ONE].best.rates[0], len(losses[ONE])
    rates, p_value, by_group = dict.fromkeys(names, one_rate), math.nan, False
    if EACH in studies:
        rates = dict(zip(names, studies[EACH].best.rates, strict=True))
        p_value = p_values_against_one({1.0: losses[ONE], 2.0: losses[EACH]})[2.0]
        is_smaller = statistics.median(losses[EACH]) < statistics.median(losses[ONE])
        by_group = is_smaller and (math.isnan(p_value) or p_value <= level)
    margin = (lrs[1] / lrs[0]) ** 0.05
    of_all = {**rates, ONE: one_rate}
    at_edge = [n for n, rate in of_all.items() if not lrs[0] * margin < rate < lrs[1] / margin]
    if not math.isnan(p_value) and least_p_value(seeds) > level:
        warn_caller(
            f"find_rates() cannot tell rates by group from chance with seeds={seeds} at level={level:g}"
        )
    return RateSearch(
        names=names,
        one_rate=one_rate,
        rates=rates,
        losses=losses,
        p_value=p_value,
        by_group=by_group,
        recommended=rates if by_group else dict.fromkeys(names, one_rate),
        at_edge=at_edge,
        trials={kind: study.measured for kind, study in studies.items()},
        seeds=seeds,
        level=level,
    )
