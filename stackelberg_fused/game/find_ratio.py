"""Which head/body ratio to take, by short training runs on the user's own model and batches."""

from __future__ import annotations

import copy
import itertools
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..groups.option_types import Tied
from ..groups.split import Head, split_body_head
from ..optimizers.adam import StackelbergAdamW
from ..warning import warn_caller

MOST_EXTENSIONS = 4


@dataclass(frozen=True)
class RatioSearch:
    """What short runs said of each ratio; losses are means over the last quarter of a run, infinite where it diverged.

    Attributes:
        losses: by ratio and body rate, one for each seed.
        best_rate: by ratio, that of the smallest median loss.
        recommended: a ratio; 1 where no other one is better beyond chance.
        p_values: by ratio but 1: of an exact sign-flip test (Fisher 1935) of its losses against those of ratio 1 with
            the same seeds, each at its best rate, times the number of ratios (Bonferroni), so at least 2**-seeds times
            that. NaN where all seeds gave the same runs, which says nothing of chance.
        at_edge: ratios whose best rate is an end of the grid: they may be better than they look.
        seeds: runs of each ratio and rate.
    """

    losses: dict[float, dict[float, list[float]]]
    best_rate: dict[float, float]
    recommended: float
    p_values: dict[float, float]
    at_edge: list[float]
    seeds: int

    @property
    def body_lr(self) -> float:
        """The best body rate of the recommended ratio."""
        return self.best_rate[self.recommended]

    def table(self) -> str:
        """A line per ratio, best rate and its loss: median, smallest and largest of the seeds."""
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
        """The recommendation in words."""
        known = [p for p in self.p_values.values() if not math.isnan(p)]
        if self.recommended == 1:
            least = f": the smallest p is {min(known):.2g}" if known else ""
            return f"One rate for all layers: no ratio was better beyond chance in {self.seeds} seeds{least}."
        said = f"Ratio {self.recommended:g} at a body rate of {self.body_lr:.3g}"
        p = self.p_values[self.recommended]
        if math.isnan(p):
            return f"{said} was best. All seeds gave the same runs, so that nothing is known of chance."
        return (
            f"{said}: better than one rate for all layers, p = {p:.2g} with {self.seeds} seeds and "
            f"{len(self.p_values)} ratios; after short runs: long ones may differ."
        )

    def plot(self, path: str | Path) -> None:
        """Draw losses over body rates, a line per ratio; needs matplotlib."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axis = figure.subplots()
        for ratio, by_rate in self.losses.items():
            rates = sorted(by_rate)
            middle = [statistics.median(by_rate[rate]) for rate in rates]
            (line,) = axis.plot(rates, middle, "o-", label=f"ratio {ratio:g}")
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
    **settings: Any,
) -> RatioSearch:
    """Train copies of a model for a few steps at every ratio and body rate, and compare.

    The grid of body rates is extended where a ratio's best one is an end of it. Each seed has its own order of
    batches, and initial weights of its own where `model` makes them (of a module they are always the same, so that
    nothing is learned of other ones); it has the same ones for every ratio and rate, so that ratios are compared pair
    by pair. Ratio 1 is always among them. The random states of torch, NumPy and Python are set by seed in a run, and
    put back.

    Args:
        model: a module, of which every run trains a copy, or what makes one.
        batches: any iterable, read once; a run goes through them in the seed's order, again and again.
        loss_fn: `loss = loss_fn(model, batch)`, one element.
        head, tied: as in `split_body_head`.
        ratios, body_lrs: > 0.
        optimizer: a Stackelberg optimizer's class; `settings` are passed on to it.
        steps: of each run.
        seeds: runs for each ratio and rate.
        level: a ratio is recommended over 1 if its p-value is at most this.

    Raises:
        ValueError: arguments that do not fit; every run of ratio 1 diverged.
    """
    wanted = sorted({1.0, *map(float, ratios)})
    rates = sorted(set(map(float, body_lrs)))
    for name, values in (("ratios", wanted), ("body_lrs", rates)):
        if not values or not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be finite and > 0, got {values}")
    batches = list(batches)
    if not batches or steps < 1 or seeds < 1:
        raise ValueError("find_ratio() needs batches, steps >= 1 and seeds >= 1")

    def measured(ratio: float, rate: float) -> list[float]:
        make = optimizer, {"lr": rate, "head_lr_ratio": ratio, **settings}
        split = {"head": _named(model, head), "tied": tied}
        return [_run(model, batches, loss_fn, split, make, steps, seed) for seed in range(seeds)]

    losses: dict[float, dict[float, list[float]]] = {}
    spacing = (rates[-1] / rates[0]) ** (1 / (len(rates) - 1)) if len(rates) > 1 else 3.0
    for ratio in wanted:
        found = losses[ratio] = {rate: measured(ratio, rate) for rate in rates}
        for _ in range(MOST_EXTENSIONS):
            best = _best(found)
            if min(found) < best < max(found):
                break
            outside = best / spacing if best == min(found) else best * spacing
            found[outside] = measured(ratio, outside)
    best_rate = {ratio: _best(found) for ratio, found in losses.items()}
    at_edge = [r for r, found in losses.items() if best_rate[r] in (min(found), max(found))]
    if not math.isfinite(min(losses[1.0][best_rate[1.0]])):
        raise ValueError("every run with one rate for all layers diverged: try smaller body_lrs")
    at_best = {ratio: losses[ratio][rate] for ratio, rate in best_rate.items()}
    p_values = _p_values(at_best)
    recommended = _recommended(at_best, p_values, level)
    if any(p == p for p in p_values.values()) and 2.0**-seeds * len(p_values) > level:
        warn_caller(
            f"find_ratio() cannot tell any of {len(p_values)} ratios from chance with seeds={seeds} at level={level:g}"
        )
    return RatioSearch(losses, best_rate, recommended, p_values, at_edge, seeds)


def _best(found: dict[float, list[float]]) -> float:
    return min(found, key=lambda rate: (statistics.median(found[rate]), rate))


def _run(
    model: nn.Module | Callable[[], nn.Module],
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    split: dict[str, Any],
    make: tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]],
    steps: int,
    seed: int,
) -> float:
    """The mean loss over the last quarter of a run."""
    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - what a user's own code may draw from
            mine = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
            stepped = make[0](split_body_head(mine, **split), **make[1])
            return _train(mine, stepped, batches, loss_fn, steps, random.Random(seed))
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002


def _train(
    model: nn.Module,
    stepped: torch.optim.Optimizer,
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    steps: int,
    shuffle: random.Random,
) -> float:
    order, last = list(range(len(batches))), []
    take_step: Any = stepped.step
    for step in range(steps):
        if step % len(order) == 0:
            shuffle.shuffle(order)
        batch = batches[order[step % len(order)]]

        def closure(batch: Any = batch) -> Tensor:
            loss = loss_fn(model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError(f"loss_fn must return a tensor of one element, got {loss!r:.80}")
            loss.backward()
            return loss.detach()

        value = float(take_step(closure))
        stepped.zero_grad()
        if not math.isfinite(value):
            return math.inf
        if step >= steps - max(1, steps // 4):
            last.append(value)
    return sum(last) / len(last)


def _named(model: Any, head: Any) -> Any:
    """A head by names, which copies of a model have too."""
    if not isinstance(model, nn.Module):
        return head
    if isinstance(head, nn.Module):
        return next((name for name, module in model.named_modules() if module is head), head)
    return [_named(model, part) for part in head] if isinstance(head, (list, tuple)) else head


def _p_values(at_best: dict[float, list[float]]) -> dict[float, float]:
    """Of each ratio but 1, see `RatioSearch`."""
    uniform, found = at_best[1.0], {}
    for ratio, values in at_best.items():
        if ratio == 1:
            continue
        if not all(map(math.isfinite, values)):
            found[ratio] = 1.0
        elif len(values) > 1 and len(set(values)) == len(set(uniform)) == 1:
            found[ratio] = math.nan
        else:
            differences = [a - b for a, b in zip(values, uniform, strict=True)]
            found[ratio] = min(1.0, sign_flip_p_value(differences) * (len(at_best) - 1))
    return found


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """How likely a sum is as small as that of the differences, if each had either sign by chance.

    Exact for up to 14 of them, from 10 000 seeded draws for more. An infinite difference is one of the largest seen.
    """
    most = max((abs(d) for d in differences if math.isfinite(d)), default=1.0)
    sizes = np.array([min(max(d, -most), most) for d in differences])
    if len(sizes) <= 14:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(sizes))))
    else:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), (10_000, len(sizes)))
    sums = (signs * np.abs(sizes)).sum(1)
    return float((sums <= sizes.sum() + 1e-12 * np.abs(sizes).sum()).mean())


def _recommended(
    at_best: dict[float, list[float]], p_values: dict[float, float], level: float
) -> float:
    """The ratio with the smallest median loss of those that are better beyond chance, and 1."""
    medians = {ratio: statistics.median(values) for ratio, values in at_best.items()}
    better = [1.0, *(ratio for ratio, p in p_values.items() if math.isnan(p) or p <= level)]
    return min(better, key=lambda ratio: (medians[ratio], ratio))
