"""Every head/body ratio on real data: each at its own best body rate, and all at one.

The body rate is tuned for every optimizer, mode and ratio with one seed, on a grid that is extended until the
best rate is none of its ends. Then come other seeds, at the best rate and at one body rate for all ratios.
Seeds are paired: the same seed has the same initial weights and batches everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ...demo.tasks import TASKS, Task, evaluate
from ...demo.trainer import warmup_cosine
from ...game.alternating import alternating_step
from ...optimizers.adam import StackelbergAdam
from ...optimizers.sgd import StackelbergSGD
from .experiment import Cell, Cells, Experiment
from .plot_style import new_figure, save
from .statistics import difference, interval
from .training_plots import draw_best, draw_tuning

MODES = ("simultaneous", "alternating")
TUNING_SEED = 0
GRID_STEP = 10**0.5  # two rates per decade
MOST_EXTENSIONS = 6


@dataclass(frozen=True)
class Arm:
    """One way to train, but for its body rate."""

    optimizer: str
    mode: str
    ratio: float

    def key(self, exponent: int, seed: int) -> str:
        return f"{self.optimizer}, {self.mode}, ratio {self.ratio:g}, rate {rate_of(exponent):.3g}, seed {seed}"

    def label(self) -> str:
        return f"{self.optimizer}, {self.mode}"


def rate_of(exponent: int) -> float:
    """The body rates are 10 ** (exponent / 2)."""
    return GRID_STEP**exponent


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def cut(model: nn.Module, head: str) -> tuple[Any, nn.Module]:
    """Body and head as callables that share the model's parameters."""
    if isinstance(model, nn.Sequential):
        return nn.Sequential(*list(model.children())[:-1]), model.get_submodule(head)
    return model.features, model.get_submodule(head)


def train(
    task: Task, arm: Arm, exponent: int, seed: int, steps: int, scheduled: bool
) -> dict[str, Any]:
    """One run: losses and accuracy after the last step; infinite where it diverged."""
    torch.manual_seed(seed)
    model = task.model()
    batches = torch.Generator().manual_seed(seed)
    body, head = cut(model, task.head)
    of_head = {id(p) for p in head.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in of_head]},
        {"params": list(head.parameters()), "role": "head"},
    ]
    kind = {"Adam": StackelbergAdam, "SGD": StackelbergSGD}[arm.optimizer]
    optimizer = kind(groups, lr=rate_of(exponent), head_lr_ratio=arm.ratio)
    schedule = partial(warmup_cosine, steps=steps, warmup=0.05, final=0.1)
    scheduler = LambdaLR(optimizer, schedule if scheduled else lambda _: 1.0)
    for _ in range(steps):
        inputs, targets = task.batch(batches)
        if arm.mode == "alternating":
            loss = alternating_step(body, head, cross_entropy, optimizer, inputs, targets).loss
        else:
            loss = cross_entropy(head(body(inputs)), targets)
            loss.backward()
            optimizer.step(zero_grad=True)
        scheduler.step()
        if not bool(loss.isfinite()):
            return {"train_loss": math.inf, "test_loss": math.inf, "accuracy": 0.0}
    trained = evaluate(model, task.training)[0] if task.training else loss.item()
    tested, accuracy = evaluate(model, task.validation)
    finite = math.isfinite(trained) and math.isfinite(tested)
    return {
        "train_loss": trained if finite else math.inf,
        "test_loss": tested if finite else math.inf,
        "accuracy": accuracy,
    }


class Training(Experiment):
    """What digits and language share.

    Attributes:
        score: by what the body rate is chosen: "train_loss" or "test_loss".
        grids: first and last exponent of the grid, by optimizer.
    """

    shows_with = ("matplotlib", "scipy")
    score: str
    score_name: str
    steps: int
    scheduled: bool
    grids: dict[str, tuple[int, int]]

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        ratios = (
            {"Adam": (1, 10), "SGD": ()} if quick else {"Adam": (1, 3, 10, 30, 100), "SGD": (1, 10)}
        )
        self.arms = [Arm(o, m, r) for o, rs in ratios.items() for m in MODES for r in rs]
        self.seeds = 2 if quick else 5
        self.extensions = 0 if quick else MOST_EXTENSIONS
        if quick:
            self.steps = 40
            self.grids = {name: (low + 1, low + 3) for name, (low, _) in self.grids.items()}

    @cached_property
    def task(self) -> Task:
        """Read when it is needed: a result is redrawn without the data."""
        return TASKS[self.name](self.quick and self.name == "language")

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.task.data,
            "arms": [[arm.optimizer, arm.mode, arm.ratio] for arm in self.arms],
            "steps": self.steps,
            "seeds": self.seeds,
            "score": self.score,
            "grids": self.grids,
        }

    def _cell(self, arm: Arm, exponent: int, seed: int) -> Cell:
        def work() -> dict[str, Any]:
            return train(self.task, arm, exponent, seed, self.steps, self.scheduled)

        return Cell(arm.key(exponent, seed), work)

    def _tuned(self, cells: Cells, arm: Arm) -> dict[int, float]:
        """Scores with the tuning seed, by exponent."""
        found = {}
        for exponent in range(-16, 8):
            cell = cells.get(arm.key(exponent, TUNING_SEED))
            if cell is not None:
                found[exponent] = cell[self.score]
        return found

    def best(self, cells: Cells, arm: Arm) -> int:
        """The exponent of the best rate."""
        scores = self._tuned(cells, arm)
        return min(scores, key=lambda exponent: (scores[exponent], exponent))

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            self._cell(arm, exponent, TUNING_SEED)
            for arm in self.arms
            for exponent in range(self.grids[arm.optimizer][0], self.grids[arm.optimizer][1] + 1)
        ]
        for _ in range(self.extensions):
            more = []
            for arm in self.arms:
                scores, best = self._tuned(cells, arm), self.best(cells, arm)
                if best == min(scores):
                    more.append(self._cell(arm, best - 1, TUNING_SEED))
                elif best == max(scores):
                    more.append(self._cell(arm, best + 1, TUNING_SEED))
            if not more:
                break
            yield more
        yield [
            self._cell(arm, exponent, seed)
            for arm in self.arms
            for exponent in sorted({self.best(cells, arm), self.fixed(cells, arm)})
            for seed in range(1, self.seeds + 1)
        ]

    def fixed(self, cells: Cells, arm: Arm) -> int:
        """The rate at which all ratios of an optimizer and mode are tried: a step below the best one of ratio 1."""
        return self.best(cells, Arm(arm.optimizer, arm.mode, 1)) - 1

    def results(self, cells: Cells, arm: Arm, exponent: int, what: str) -> list[float]:
        """By seed."""
        return [cells[arm.key(exponent, seed)][what] for seed in range(1, self.seeds + 1)]

    def tables(self, cells: Cells) -> list[Table]:
        found = []
        numbers = {self.score_name: self.score, "test loss": "test_loss", "accuracy": "accuracy"}
        if self.score == "test_loss":
            del numbers["test loss"]  # it stands there under the score's name
        for title, choose in (
            ("each at its best body rate", self.best),
            ("at one body rate for all", self.fixed),
        ):
            table = Table(title=f"{self.name}, {self.steps} steps, {self.seeds} seeds: {title}")
            for column in ("optimizer", "ratio", "body rate", *numbers):
                table.add_column(column)
            for arm in self.arms:
                exponent = choose(cells, arm)
                said = [
                    _said(self.results(cells, arm, exponent, what)) for what in numbers.values()
                ]
                table.add_row(arm.label(), f"{arm.ratio:g}", f"{rate_of(exponent):.2g}", *said)
            found.append(table)
        return found

    def verdict(self, cells: Cells) -> list[str]:
        lines = []
        for title, choose in (
            ("each at its best rate", self.best),
            ("at one body rate", self.fixed),
        ):
            for optimizer in dict.fromkeys(arm.optimizer for arm in self.arms):
                uniform = Arm(optimizer, "simultaneous", 1)
                control = self.results(cells, uniform, choose(cells, uniform), self.score)
                better, worse = [], []
                for arm in self.arms:
                    if arm.optimizer != optimizer or arm == uniform:
                        continue
                    scores = self.results(cells, arm, choose(cells, arm), self.score)
                    mean, half = difference(scores, control)
                    if mean + half < 0:
                        better.append(f"{arm.mode} {arm.ratio:g} ({mean:+.4f} ± {half:.4f})")
                    elif not mean - half <= 0:
                        worse.append(f"{arm.mode} {arm.ratio:g}")
                said = ", ".join(better) if better else "nothing"
                lines.append(
                    f"{optimizer}, {title}: better than one rate for all layers, simultaneous, beyond the 95% "
                    f"interval of the paired seeds ({self.score_name}): {said}"
                    + (f"; worse: {', '.join(worse)}" if worse else "")
                )
        return lines

    def check(self, cells: Cells) -> list[str]:
        failed = []
        for arm in self.arms:
            scores, best = self._tuned(cells, arm), self.best(cells, arm)
            if not self.quick and best in (min(scores), max(scores)):
                failed.append(
                    f"{arm.label()}, ratio {arm.ratio:g}: the best rate is at an end of the grid"
                )
            if not math.isfinite(scores[best]):
                failed.append(f"{arm.label()}, ratio {arm.ratio:g}: diverged at every rate")
        untrained = math.log(10 if self.name == "digits" else 256)
        if not all(self._tuned(cells, arm)[self.best(cells, arm)] < untrained for arm in self.arms):
            failed.append("a run has learned nothing")
        return failed

    def draw(self, cells: Cells, path: Path) -> None:
        optimizers = list(dict.fromkeys(arm.optimizer for arm in self.arms))
        figure, axes = new_figure(1 + len(optimizers))
        off = []
        for axis, optimizer in zip(axes, optimizers, strict=False):
            tuned = {
                arm: {rate_of(e): score for e, score in self._tuned(cells, arm).items()}
                for arm in self.arms
                if arm.optimizer == optimizer
            }
            off.append(draw_tuning(axis, tuned))
            axis.set(title=f"{optimizer}: tuning", ylabel=self.score_name)
        stats = {
            arm: interval(self.results(cells, arm, self.best(cells, arm), self.score))
            for arm in self.arms
        }
        draw_best(axes[-1], stats)
        axes[-1].set(title="each at its best body rate", ylabel=self.score_name)
        edge = "at the upper edge: above it (triangle) or diverged (cross); " if any(off) else ""
        save(
            figure,
            path,
            f"solid, full: simultaneous; dashed, open: alternating; {edge}bars: 95% interval over {self.seeds} seeds; "
            "points of one rate or ratio stand side by side",
        )


def _said(values: list[float]) -> str:
    mean, half = interval(values)
    return f"{mean:.4f} ± {half:.4f}" if math.isfinite(mean) else "diverged"


class Digits(Training):
    name = "digits"
    computes_with = ("sklearn",)
    score, score_name = "train_loss", "training loss"
    steps, scheduled = 400, False
    grids = {"Adam": (-7, -4), "SGD": (-3, 0)}  # noqa: RUF012


class Language(Training):
    name = "language"
    score, score_name = "test_loss", "validation loss"
    steps, scheduled = 250, True
    grids = {"Adam": (-7, -4), "SGD": (-3, 0)}  # noqa: RUF012
