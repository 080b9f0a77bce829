"""The searches of the kinds experiment: `find_rates` on a small GPT, for rates by kind and rates in fixed ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ...demo.data import split_text, text_batch, text_windows
from ...demo.gpt import GPT, GPTConfig
from ...demo.trainer import warmup_cosine
from ...game.find_rates import FIRST_SEED, find_rates
from ...game.rate_search import RateSearch
from ...game.short_runs import short_run_loss
from ...optimizers.adam import StackelbergAdam
from .kind_arms import Arm, by_kind, in_ratios, together

Batch = tuple[Tensor, Tensor]
LRS = (1e-4, 1.0)  # the smallest and the largest rate to try
DIGITS = 6  # significant ones, of the numbers in the JSON


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Attributes:
        width, layers, heads, context: of the GPT.
        batch_size: windows of text in a batch.
        steps: of a run.
        batches: of which each run takes some, in an order that its seed sets.
        windows: of the validation text.
        budget: points that each search tries.
        tuning_seeds: runs of each point.
        seeds: runs with the best point of each search.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 64
    batch_size: int = 8
    steps: int = 200
    batches: int = 800
    windows: int = 128
    budget: int = 32
    tuning_seeds: int = 2
    seeds: int = 10


QUICK = Size(
    width=16, layers=1, heads=2, context=16, batch_size=8, steps=24, batches=48, windows=32,
    budget=4, tuning_seeds=2, seeds=6,
)  # fmt: skip


def next_byte_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean loss in nats per byte, []."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())


class Searches:
    """`find_rates` on a GPT of a size and Python's help text."""

    def __init__(self, size: Size) -> None:
        self.size = size

    @cached_property
    def _split(self) -> Any:
        return split_text()

    def data(self) -> dict[str, Any]:
        """Describe the text."""
        return {"source": "pydoc_data.topics", "sha256": self._split.sha256()}

    def model(self) -> GPT:
        """Return a new GPT, whose head is not tied to the embedding."""
        size = self.size
        return GPT(
            GPTConfig(context=size.context, layers=size.layers, heads=size.heads, width=size.width)
        )

    @cached_property
    def batches(self) -> list[Batch]:
        """The training batches, the same of all searches."""
        generator = torch.Generator().manual_seed(0)
        (text,), size = self._split.train, self.size
        return [
            text_batch(text, size.batch_size, size.context, generator) for _ in range(size.batches)
        ]

    @cached_property
    def _validation(self) -> Batch:
        return text_windows(self._split.validation[0], self.size.windows, self.size.context)

    def validation_loss(self, model: nn.Module) -> Tensor:
        """Return the loss on held-out text, []."""
        return next_byte_loss(model, self._validation)

    def by_kind(self, path: Path | None) -> dict[str, Any]:
        """Search one rate, and a rate for each kind."""
        return self._found(by_kind, StackelbergAdam, path)

    def in_ratios(self, arm: Arm, path: Path | None) -> dict[str, Any]:
        """Search the rate of the matrices, all others in the arm's ratios to it."""
        return self._found(together, partial(in_ratios, ratios=arm.ratios), path)

    def judged(self, rates: Sequence[float], seeds: int, steps: int) -> list[float]:
        """Return the loss of the first judged seeds at a rate for each kind."""
        return _rounded(
            short_run_loss(
                self.model,
                self.batches,
                next_byte_loss,
                lambda model: [
                    {**group, "lr": rate} for group, rate in zip(by_kind(model), rates, strict=True)
                ],
                StackelbergAdam,
                {},
                steps,
                seed,
                schedule=_schedule(steps),
                evaluate=self.validation_loss,
            )
            for seed in range(FIRST_SEED, FIRST_SEED + seeds)
        )

    def _found(self, groups: Any, optimizer: Any, path: Path | None) -> dict[str, Any]:
        size = self.size
        search = find_rates(
            self.model,
            self.batches,
            next_byte_loss,
            groups=groups,
            lrs=LRS,
            budget=size.budget,
            steps=size.steps,
            tuning_seeds=size.tuning_seeds,
            seeds=size.seeds,
            optimizer=optimizer,
            schedule=_schedule(size.steps),
            evaluate=self.validation_loss,
            path=path,
            progress=False,
        )
        return _as_json(search)


def _schedule(steps: int) -> Any:
    return partial(LambdaLR, lr_lambda=partial(warmup_cosine, steps=steps, warmup=0.05, final=0.1))


def _as_json(search: RateSearch) -> dict[str, Any]:
    trials = {
        kind: [
            {
                "rates": _rounded(p.rates),
                "losses": _rounded(p.losses),
                "loss": _rounded([p.loss])[0],
            }
            for p in points
        ]
        for kind, points in search.trials.items()
    }
    return {
        "one_rate": _rounded([search.one_rate])[0],
        "rates": dict(zip(search.rates, _rounded(search.rates.values()), strict=True)),
        "losses": {kind: _rounded(losses) for kind, losses in search.losses.items()},
        "at_edge": search.at_edge,
        "verdict": search.verdict(),
        "trials": trials,
    }


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values]
