"""Search for a head/body ratio of learning rates by short training runs on the user's model and batches."""

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
from .search_progress import SearchProgress
from .short_runs import head_by_name, new_modules, short_run_loss
from .significance import checked_level, least_p_value, p_values_against_one, recommended_ratio

MOST_EXTENSIONS = 4  # rates that may be added to the grid of a ratio


@dataclass(frozen=True)
class RatioSearch:
    """The losses of short runs by ratio, and the recommended ratio.

    The loss of a run is the mean over its last quarter, or infinity if the run diverged.

    Attributes:
        losses: by ratio and body rate: the loss for each seed.
        best_rate: by ratio: the body rate of the smallest median loss.
        recommended: the recommended ratio; 1 unless another ratio is significantly better.
        p_values: by ratio other than 1: the p-value of a sign-flip test (Fisher 1935; see `sign_flip_p_value`) of its
            losses against those of ratio 1 with the same seeds, both at their best rates, times the number of these
            ratios (Bonferroni). It is at least 2**-seeds times that number, above 14 seeds 1/10001 times it. NaN if all
            seeds gave equal runs. More seeds after a look at the result make it too small: see `find_rates`.
        at_edge: the ratios whose best rate is an end of the grid: a wider grid may improve them.
        seeds: the number of runs for each ratio and rate.
    """

    losses: dict[float, dict[float, list[float]]]
    best_rate: dict[float, float]
    recommended: float
    p_values: dict[float, float]
    at_edge: list[float]
    seeds: int

    @property
    def body_lr(self) -> float:
        """The best body rate at the recommended ratio."""
        return self.best_rate[self.recommended]

    def table(self) -> str:
        """Return a text table of one line per ratio: its best rate, and the median, smallest and largest loss there."""
        lines = [
            f"{'ratio':>8}{'body rate':>12}{'head rate':>12}{'loss':>12}  {'smallest .. largest'}"
        ]
        for ratio, rate in self.best_rate.items():
            values = self.losses[ratio][rate]
            mark = " <- recommended" if ratio == self.recommended else ""
            edge = " (best rate at the end of the grid)" if ratio in self.at_edge else ""
            lines.append(
                f"{ratio:>8g}{rate:>12.3g}{rate * ratio:>12.3g}{statistics.median(values):>12.5g}  "
                f"{min(values):.5g} .. {max(values):.5g}{mark}{edge}"
            )
        return "\n".join(lines)

    def verdict(self) -> str:
        """Return the recommendation as a sentence."""
        p_values = [p for p in self.p_values.values() if not math.isnan(p)]
        if self.recommended == 1:
            least = f": the smallest p is {min(p_values):.2g}" if p_values else ""
            return f"One rate for all layers: no ratio was better beyond chance in {self.seeds} seeds{least}."
        choice = f"Ratio {self.recommended:g} at a body rate of {self.body_lr:.3g}"
        p = self.p_values[self.recommended]
        if math.isnan(p):
            return f"{choice} was best. All seeds gave the same runs, so that nothing is known of chance."
        return (
            f"{choice}: better than one rate for all layers, p = {p:.2g} with {self.seeds} seeds and "
            f"{len(self.p_values)} ratios; after short runs: long ones may differ."
        )

    def plot(self, path: str | Path) -> None:
        """Write a plot of loss over body rate to `path`, one line per ratio.

        Args:
            path: of the picture; its ending says which format it has.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        for ratio, by_rate in self.losses.items():
            rates = sorted(by_rate)
            medians = [statistics.median(by_rate[rate]) for rate in rates]
            (line,) = axis.plot(rates, medians, "o-", label=f"ratio {ratio:g}")
            low, high = [min(by_rate[r]) for r in rates], [max(by_rate[r]) for r in rates]
            axis.fill_between(rates, low, high, color=line.get_color(), alpha=0.12, lw=0)
        axis.set(xscale="log", xlabel="body rate", ylabel="loss, median; band: all seeds")
        axis.set_title(f"recommended ratio: {self.recommended:g}")
        axis.legend()
        figure.savefig(path, dpi=130)


def find_ratio(
    model: nn.Module | Callable[[], nn.Module],
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    head: Head = None,
    tied: Tied = "error",
    ratios: Iterable[float] = (1, 3, 10, 30),
    body_lrs: Iterable[float] = (3e-4, 1e-3, 3e-3),
    optimizer: Callable[..., torch.optim.Optimizer] = StackelbergAdamW,
    steps: int = 100,
    seeds: int = 8,
    level: float = 0.05,
    progress: bool | None = None,
    **settings: Any,
) -> RatioSearch:
    """Train a model for a few steps at each ratio and body rate, and recommend a ratio.

    If a ratio's best body rate is an end of the grid, the grid is extended there. A seed sets the order of the batches,
    and the initial weights if `model` is a factory. (All runs of a module start from its weights, so the result holds
    for these weights only.) Each ratio and rate runs with the same seeds, so losses are compared in pairs. Ratio 1 is
    always included. Each run seeds the random states of torch, NumPy and Python, and restores them.

    Args:
        model: a module, which is copied for each run, or a callable that returns a new module.
        batches: any iterable; it is read once. A run cycles through the batches in an order that the seed sets.
        loss_fn: `loss = loss_fn(model, batch)`, a tensor of one element.
        head, tied: as in `split_body_head`.
        ratios: head rate / body rate, > 0.
        body_lrs: body rates, > 0.
        optimizer: the class of a Stackelberg optimizer, called with the groups, `lr`, `head_lr_ratio` and `settings`.
        steps: the number of steps of a run, >= 1.
        seeds: the number of runs for each ratio and rate, >= 1.
        level: the significance level, between 0 and 1: the largest p-value at which a ratio is recommended over 1.
        progress: show the cost and a bar with the time left on standard error. None: where that is a terminal.
        **settings: of the optimizer.

    Returns:
        All losses, p-values and the recommended ratio.

    Warns:
        UserWarning: no p-value can reach `level` with so few seeds.

    Raises:
        ValueError: an argument does not fit, `model()` returned a module twice, or every run of ratio 1 diverged.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        >>> batches = [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(4)]
        >>> def loss_fn(model, batch):
        ...     return nn.functional.mse_loss(model(batch[0]), batch[1])
        >>> few = {"ratios": (1, 10), "body_lrs": (1e-3, 1e-2), "steps": 4, "seeds": 5}  # an example
        >>> found = sf.find_ratio(model, batches, loss_fn, head="2", **few)
        >>> found.recommended in (1, 10)
        True
    """
    all_ratios = sorted({1.0, *map(float, ratios)})
    rates = sorted(set(map(float, body_lrs)))
    for name, values in (("ratios", all_ratios), ("body_lrs", rates)):
        if not values or not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be finite and > 0, got {values}")
    batches = list(batches)
    if not batches or steps < 1 or seeds < 1:
        raise ValueError("find_ratio() needs batches, steps >= 1 and seeds >= 1")

    level = checked_level("find_ratio", level)
    by_name, new_module = head_by_name(model, head), new_modules(model)

    def groups(of: nn.Module) -> list[dict[str, Any]]:
        return split_body_head(of, head=by_name, tied=tied)

    def seed_losses(ratio: float, rate: float) -> list[float]:
        options = {"lr": rate, "head_lr_ratio": ratio, **settings}
        runs = []
        for seed in range(seeds):
            begin = bar.done
            runs.append(
                short_run_loss(
                    new_module,
                    batches,
                    loss_fn,
                    groups,
                    optimizer,
                    options,
                    steps,
                    seed,
                    bar.advance,
                )
            )
            bar.advance(steps - (bar.done - begin))  # a run that diverged took fewer
        bar.say(f"ratio {ratio:g}, body rate {rate:.3g}: {statistics.median(runs):.4g}")
        return runs

    losses: dict[float, dict[float, list[float]]] = {}
    spacing = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1)) if len(rates) > 1 else 3.0
    runs = len(all_ratios) * len(rates) * seeds
    with SearchProgress("find_ratio", runs * steps, progress) as bar:
        bar.print(
            f"find_ratio: {len(all_ratios)} ratios x {len(rates)} rates x {seeds} seeds = {runs} runs of {steps} "
            f"steps, and at most {MOST_EXTENSIONS * seeds} more of a ratio whose best rate is at the end of the grid"
        )
        for ratio in all_ratios:
            by_rate = losses[ratio] = {rate: seed_losses(ratio, rate) for rate in rates}
            for _ in range(MOST_EXTENSIONS):
                best = _best_rate(by_rate)
                if min(by_rate) < best < max(by_rate):
                    break
                outside = best / spacing if best == min(by_rate) else best * spacing
                bar.steps += seeds * steps
                by_rate[outside] = seed_losses(ratio, outside)
    best_rate = {ratio: _best_rate(by_rate) for ratio, by_rate in losses.items()}
    at_edge = [r for r, by_rate in losses.items() if best_rate[r] in (min(by_rate), max(by_rate))]
    if not math.isfinite(min(losses[1.0][best_rate[1.0]])):
        raise ValueError("every run with one rate for all layers diverged: try smaller body_lrs")
    at_best = {ratio: losses[ratio][rate] for ratio, rate in best_rate.items()}
    p_values = p_values_against_one(at_best)
    recommended = recommended_ratio(at_best, p_values, level)
    if any(p == p for p in p_values.values()) and least_p_value(seeds) * len(p_values) > level:
        warn_caller(
            f"find_ratio() cannot tell any of {len(p_values)} ratios from chance with seeds={seeds} at level={level:g}"
        )
    return RatioSearch(losses, best_rate, recommended, p_values, at_edge, seeds)


def _best_rate(by_rate: dict[float, list[float]]) -> float:
    return min(by_rate, key=lambda rate: (statistics.median(by_rate[rate]), rate))
