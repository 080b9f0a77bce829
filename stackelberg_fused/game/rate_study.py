"""One search of `find_rates`, by Optuna: points that were tried, kept in a file if there is one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .search_progress import SearchProgress

Run = Callable[[list[float], int], float]  # loss of a run with a rate for each group, and a seed
LARGEST_LOSS = 1e300  # what Optuna is told of an infinite loss


@dataclass(frozen=True)
class Measured:
    """A point that was tried.

    Attributes:
        rates: of each group.
        losses: by seed; fewer than were to be run, if the point was given up.
        loss: their median; infinity, if the point was given up.
    """

    rates: list[float]
    losses: list[float]
    loss: float


class RateStudy:
    """A search over rates.

    Args:
        storage: of `open_storage`.
        kind: names it in the storage.
        together: names of groups that share a rate, for each rate.
        lrs: the smallest and the largest rate.
        budget: the number of points; if the storage has more, the first of them.
        described: what a search that goes on has to have in common with the one that it continues. It is kept as soon
            as there is a point, so that a mistake in the first call costs nothing.

    Raises:
        ValueError: the storage has points of a search that was described in another way.
    """

    def __init__(
        self,
        storage: Any,
        kind: str,
        together: list[list[str]],
        lrs: tuple[float, float],
        budget: int,
        described: dict[str, Any],
    ) -> None:
        import optuna

        self._optuna, self.kind, self._lrs = optuna, kind, lrs
        self._together, self._budget, self._described = together, budget, described
        self._start: Measured | None = None
        with self._quiet():
            self.study = optuna.create_study(
                study_name=kind,
                storage=storage,
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            )
        if not self._finished():
            return
        known = self.study.user_attrs.get("described", {})
        different = [key for key in described if known.get(key) != described[key]]
        if different:
            raise ValueError(
                f"find_rates(): the file is of another search, whose {different[0]} was {known.get(different[0])!r} "
                f"and not {described[different[0]]!r}"
            )

    @property
    def measured(self) -> list[Measured]:
        """Every point that was tried, in order."""
        return [self._measured(trial) for trial in self._finished()]

    @property
    def best(self) -> Measured:
        """The point of the smallest median loss; the first of equal ones."""
        points = self.measured if self._start is None else [self._start, *self.measured]
        return min(points, key=lambda point: point.loss)

    def start_at(self, start: Measured) -> None:
        """Have a point that was measured before count as one of this search, if there is room for one."""
        self._start = start
        if start in self.measured or len(self._finished()) >= self._budget:
            return
        rates = dict(zip([names[0] for names in self._together], start.rates, strict=True))
        distribution = self._optuna.distributions.FloatDistribution(*self._lrs, log=True)
        medians = [
            min(statistics.median(start.losses[: i + 1]), LARGEST_LOSS)
            for i in range(len(start.losses))
        ]
        self._keep_description()
        self.study.add_trial(
            self._optuna.trial.create_trial(
                params=rates,
                distributions=dict.fromkeys(rates, distribution),
                value=start.loss,
                intermediate_values=dict(enumerate(medians)),
                user_attrs={"losses": [min(loss, LARGEST_LOSS) for loss in start.losses]},
            )
        )

    def search(self, run: Run, seeds: int, steps: int, bar: SearchProgress) -> None:
        """Try points until there are as many as the budget; those that the storage has count."""
        with self._quiet():
            state = self._optuna.trial.TrialState
            for trial in self.study.get_trials(states=(state.RUNNING,)):
                self.study.tell(trial.number, state=state.FAIL)  # of a process that was killed
            tried = len(self._finished())
            bar.advance(tried * seeds * steps)
            for point in range(tried, self._budget):
                self._try_point(point, run, seeds, steps, bar)

    def _try_point(self, point: int, run: Run, seeds: int, steps: int, bar: SearchProgress) -> None:
        # seeded by the point: a search that goes on finds what it would have found without a break
        self.study.sampler = self._optuna.samplers.TPESampler(seed=point)
        trial = self.study.ask()
        by_rate = [trial.suggest_float(names[0], *self._lrs, log=True) for names in self._together]
        rates = [r for r, names in zip(by_rate, self._together, strict=True) for _ in names]
        losses: list[float] = []
        begin = bar.done
        for seed in range(seeds):
            losses.append(run(rates, seed))
            trial.set_user_attr("losses", [min(loss, LARGEST_LOSS) for loss in losses])
            trial.report(min(statistics.median(losses), LARGEST_LOSS), seed)
            # one that diverges for a seed is not the best
            if seed + 1 < seeds and (math.isinf(losses[-1]) or trial.should_prune()):
                break
        self._keep_description()
        given_up = len(losses) < seeds
        value = min(statistics.median(losses), LARGEST_LOSS)
        state = self._optuna.trial.TrialState
        self.study.tell(
            trial, None if given_up else value, state.PRUNED if given_up else state.COMPLETE
        )
        bar.advance(seeds * steps - (bar.done - begin))
        bar.say(f"{self.kind}: best {self.best.loss:.4g}")

    def compare(
        self, run: Run, seeds: Iterable[int], steps: int, bar: SearchProgress
    ) -> list[float]:
        """Return the loss of the best point for each of these seeds."""
        rates, found = self.best.rates, []
        kept = self.study.user_attrs.get("compared", {})
        known = dict(kept.get("losses", [])) if kept.get("rates") == rates else {}
        for seed in seeds:
            begin = bar.done
            if seed not in known:
                known[seed] = min(run(rates, seed), LARGEST_LOSS)
                self.study.set_user_attr("compared", {"rates": rates, "losses": [*known.items()]})
            bar.advance(steps - (bar.done - begin))
            found.append(_finite_or_infinite(known[seed]))
        return found

    def _keep_description(self) -> None:
        if not self._finished():
            self.study.set_user_attr("described", self._described)

    def _finished(self) -> list[Any]:
        state = self._optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED))
        return trials[: self._budget]

    def _measured(self, trial: Any) -> Measured:
        by_rate = [trial.params[names[0]] for names in self._together]
        rates = [r for r, names in zip(by_rate, self._together, strict=True) for _ in names]
        losses = [_finite_or_infinite(loss) for loss in trial.user_attrs["losses"]]
        is_complete = trial.state == self._optuna.trial.TrialState.COMPLETE
        return Measured(rates, losses, statistics.median(losses) if is_complete else math.inf)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Keep Optuna from a line for each point."""
        before = self._optuna.logging.get_verbosity()
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        try:
            yield
        finally:
            self._optuna.logging.set_verbosity(before)


def _finite_or_infinite(loss: float) -> float:
    return math.inf if loss >= LARGEST_LOSS else loss
