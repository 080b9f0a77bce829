"""Which head/body ratio to take, by short training runs on the user's own model and batches."""

from __future__ import annotations

import copy
import math
import random
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..adam import StackelbergAdamW
from ..partition import Head, split_body_head
from ..warning import warn_caller

MOST_EXTENSIONS = 4
RESAMPLES = 2000


@dataclass(frozen=True)
class RatioSearch:
    """What short runs said of each ratio; losses are means over the last quarter of a run, infinite where it diverged.

    Attributes:
        losses: by ratio and body rate, one for each seed.
        best_rate: by ratio, that of the smallest median loss.
        recommended: a ratio; 1 where no other one is better beyond chance.
        confidence: share of resamplings of the seeds in which the recommended ratio, if not 1, beats 1, each at its
            best rate; for 1, in which no other ratio beats it.
        at_edge: ratios whose best rate is an end of the grid: they may be better than they look.
    """

    losses: dict[float, dict[float, list[float]]]
    best_rate: dict[float, float]
    recommended: float
    confidence: float
    at_edge: list[float] = field(default_factory=list)

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
        if self.recommended == 1:
            return (
                "One rate for all layers: no ratio was better beyond chance "
                f"(none beat it in {100 * self.confidence:.0f}% of the resamplings)."
            )
        return (
            f"Ratio {self.recommended:g} at a body rate of {self.body_lr:.3g}: better than one rate for all layers in "
            f"{100 * self.confidence:.0f}% of the resamplings of {len(self.losses[1.0][self.best_rate[1.0]])} seeds, "
            "after short runs; long ones may differ."
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
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    head: Head = None,
    ratios: Iterable[float] = (1, 3, 10, 30),
    body_lrs: Iterable[float] = (3e-4, 1e-3, 3e-3),
    optimizer: Callable[..., torch.optim.Optimizer] = StackelbergAdamW,
    steps: int = 100,
    seeds: int = 3,
    level: float = 0.95,
    **settings: Any,
) -> RatioSearch:
    """Train copies of a model for a few steps at every ratio and body rate, and compare.

    The grid of body rates is extended where a ratio's best one is an end of it. Each seed has its own order of
    batches, and initial weights of its own where `model` makes them; it has the same ones for every ratio and rate, so
    that ratios are compared pair by pair. Ratio 1 is always among them. Global random states are left as they were.

    Args:
        model: a module, of which every run trains a copy, or what makes one.
        batches: to be drawn from; a run goes through them in the seed's order, again and again.
        loss_fn: `loss = loss_fn(model, batch)`, one element.
        head: as in `split_body_head`.
        ratios, body_lrs: > 0.
        optimizer: a Stackelberg optimizer's class; `settings` are passed on to it.
        steps: of each run.
        seeds: runs for each ratio and rate.
        level: a ratio is recommended over 1 if it is better in at least this share of the resamplings.

    Raises:
        ValueError: arguments that do not fit; every run of ratio 1 diverged.
    """
    wanted = sorted({1.0, *map(float, ratios)})
    rates = sorted(set(map(float, body_lrs)))
    for name, values in (("ratios", wanted), ("body_lrs", rates)):
        if not values or not all(0 < value < math.inf for value in values):
            raise ValueError(f"{name} must be finite and > 0, got {values}")
    if not len(batches) or steps < 1 or seeds < 1:
        raise ValueError("find_ratio() needs batches, steps >= 1 and seeds >= 1")

    def measured(ratio: float, rate: float) -> list[float]:
        make = optimizer, {"lr": rate, "head_lr_ratio": ratio, **settings}
        return [_run(model, batches, loss_fn, head, make, steps, seed) for seed in range(seeds)]

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
    recommended, confidence = _recommend(at_best, level)
    if seeds < 3:
        warn_caller(f"find_ratio() with seeds={seeds} cannot tell a difference from chance")
    return RatioSearch(losses, best_rate, recommended, confidence, at_edge)


def _best(found: dict[float, list[float]]) -> float:
    return min(found, key=lambda rate: (statistics.median(found[rate]), rate))


def _run(
    model: nn.Module | Callable[[], nn.Module],
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    head: Head,
    make: tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]],
    steps: int,
    seed: int,
) -> float:
    """The mean loss over the last quarter of a run."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mine = copy.deepcopy(model) if isinstance(model, nn.Module) else model()
        wanted = head
        if isinstance(model, nn.Module) and isinstance(head, nn.Module):
            wanted = next(name for name, module in model.named_modules() if module is head)
        stepped = make[0](split_body_head(mine, wanted), **make[1])
        order = list(range(len(batches)))
        shuffle = random.Random(seed)
        last: list[float] = []
        for step in range(steps):
            if step % len(order) == 0:
                shuffle.shuffle(order)
            loss = loss_fn(mine, batches[order[step % len(order)]])
            loss.backward()
            stepped.step()
            stepped.zero_grad()
            value = float(loss.detach())
            if not math.isfinite(value):
                return math.inf
            if step >= steps - max(1, steps // 4):
                last.append(value)
    return sum(last) / len(last)


def _recommend(at_best: dict[float, list[float]], level: float) -> tuple[float, float]:
    """A ratio, and how sure that is, by resampling the seeds, which are paired."""
    uniform, seeds = at_best[1.0], len(at_best[1.0])
    draw = random.Random(0)
    samples = [[draw.randrange(seeds) for _ in range(seeds)] for _ in range(RESAMPLES)]

    def share_better(values: list[float]) -> float:
        return sum(sum(values[i] - uniform[i] for i in s) < 0 for s in samples) / RESAMPLES

    shares = {
        r: share_better(v) for r, v in at_best.items() if r != 1 and all(map(math.isfinite, v))
    }
    better = [ratio for ratio, share in shares.items() if share >= level and seeds > 1]
    if not better:
        return 1.0, 1.0 - max(shares.values(), default=0.0)
    best = min(better, key=lambda ratio: statistics.median(at_best[ratio]))
    return best, shares[best]
