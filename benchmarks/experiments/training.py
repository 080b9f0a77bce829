"""Every head/body ratio on real data: each at its own best body rate, and all at the same one.

For every optimizer, mode and ratio, the first tuning seed scans a grid of body rates, which is extended until the best
one is not at its end. That one and its neighbours then run with every tuning seed, and so do the neighbours of the one
with the smallest mean, until it lies between two others: no rate is chosen by one seed alone. Other seeds then run at
that rate, and at one body rate for all ratios. Seeds are paired: one seed means the same initial weights and batches
everywhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
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
from .arm import Arm, body_rate
from .experiment import Cell, Cells, Experiment
from .plot_style import new_figure, save
from .statistics import difference, interval
from .training_plots import draw_best, draw_tuning

MODES = ("simultaneous", "alternating")
TUNING_SEEDS = (0, 1000, 1001)  # none of them is judged; there are at least two
EXPONENTS = range(-16, 8)  # of all rates that may be tried
MOST_EXTENSIONS = 6


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of outputs [..., classes] and targets [...]."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def body_and_head(model: nn.Module, head: str) -> tuple[Any, nn.Module]:
    """Return body and head as callables that share the model's parameters."""
    if isinstance(model, nn.Sequential):
        return nn.Sequential(*list(model.children())[:-1]), model.get_submodule(head)
    return model.features, model.get_submodule(head)


def train(
    task: Task, arm: Arm, exponent: int, seed: int, steps: int, scheduled: bool
) -> dict[str, Any]:
    """Train once; return losses and accuracy after the last step, infinite losses if it diverged."""
    torch.manual_seed(seed)
    model = task.model()
    batches = torch.Generator().manual_seed(seed)
    body, head = body_and_head(model, task.head)
    head_ids = {id(p) for p in head.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in head_ids]},
        {"params": list(head.parameters()), "role": "head"},
    ]
    optimizer_class = {"Adam": StackelbergAdam, "SGD": StackelbergSGD}[arm.optimizer]
    optimizer = optimizer_class(groups, lr=body_rate(exponent), head_lr_ratio=arm.ratio)
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
    train_loss = evaluate(model, task.training)[0] if task.training else loss.item()
    test_loss, accuracy = evaluate(model, task.validation)
    finite = math.isfinite(train_loss) and math.isfinite(test_loss)
    return {
        "train_loss": train_loss if finite else math.inf,
        "test_loss": test_loss if finite else math.inf,
        "accuracy": accuracy,
    }


class Training(Experiment):
    """The common part of digits and language.

    Attributes:
        score: the result that chooses the body rate, "train_loss" or "test_loss".
        score_name: its name in tables and plots.
        steps: of one run.
        scheduled: rates follow warm-up and cosine.
        grids: first and last exponent of the grid, by optimizer.
        tuning_seeds: the first one scans the grid, all of them choose the rate.
    """

    shows_with = ("matplotlib", "scipy")
    score: str
    score_name: str
    steps: int
    scheduled: bool
    grids: dict[str, tuple[int, int]]
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS

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
            self.tuning_seeds = TUNING_SEEDS[:2]
            self.grids = {name: (low + 1, low + 3) for name, (low, _) in self.grids.items()}

    @cached_property
    def task(self) -> Task:
        """The data and the model, loaded at first use: a result can be redrawn without them."""
        return TASKS[self.name](self.quick and self.name == "language")

    def settings(self) -> dict[str, Any]:
        return {
            "data": self.task.data,
            "arms": [[arm.optimizer, arm.mode, arm.ratio] for arm in self.arms],
            "steps": self.steps,
            "seeds": self.seeds,
            "tuning_seeds": self.tuning_seeds,
            "score": self.score,
            "grids": self.grids,
        }

    def adopt(self, settings: dict[str, Any]) -> None:
        # one seed alone chose the rates of earlier versions
        self.tuning_seeds = tuple(settings.get("tuning_seeds", TUNING_SEEDS[:1]))

    def _cell(self, arm: Arm, exponent: int, seed: int) -> Cell:
        def work() -> dict[str, Any]:
            return train(self.task, arm, exponent, seed, self.steps, self.scheduled)

        return Cell(arm.key(exponent, seed), work)

    def _scores(self, cells: Cells, arm: Arm) -> dict[int, list[float]]:
        """Return the scores of the tuning seeds that have run, by exponent."""
        found = {
            exponent: [
                cells[key][self.score]
                for key in (arm.key(exponent, seed) for seed in self.tuning_seeds)
                if key in cells
            ]
            for exponent in EXPONENTS
        }
        return {exponent: scores for exponent, scores in found.items() if scores}

    def _scanned(self, cells: Cells, arm: Arm) -> dict[int, float]:
        """Return the scores of the first tuning seed, by exponent."""
        keys = {e: arm.key(e, self.tuning_seeds[0]) for e in EXPONENTS}
        return {e: cells[key][self.score] for e, key in keys.items() if key in cells}

    def _tuned(self, cells: Cells, arm: Arm) -> dict[int, float]:
        """Return the mean scores by exponent, of the rates that ran with every tuning seed."""
        return {
            exponent: statistics.fmean(scores)
            for exponent, scores in self._scores(cells, arm).items()
            if len(scores) == len(self.tuning_seeds)
        }

    def best(self, cells: Cells, arm: Arm) -> int:
        """Return the exponent of the rate with the best mean over all tuning seeds."""
        return _smallest(self._tuned(cells, arm))

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            self._cell(arm, exponent, self.tuning_seeds[0])
            for arm in self.arms
            for exponent in range(self.grids[arm.optimizer][0], self.grids[arm.optimizer][1] + 1)
        ]
        # until nothing is missing, so that a finished run has nothing left to do
        while wanted := [cell for arm in self.arms for cell in self._further(cells, arm)]:
            yield wanted
        yield [
            self._cell(arm, exponent, seed)
            for arm in self.arms
            for exponent in sorted({self.best(cells, arm), self.fixed(cells, arm)})
            for seed in range(1, self.seeds + 1)
        ]

    def _rates(self, arm: Arm) -> range:
        """Return the exponents of an arm's grid and of those by which it may be extended."""
        low, high = self.grids[arm.optimizer]
        return range(low - self.extensions, high + self.extensions + 1)

    def _further(self, cells: Cells, arm: Arm) -> list[Cell]:
        """Return what the first tuning seed lacks around its best rate, then what all lack around their best."""
        scanned = self._scanned(cells, arm)
        best = _smallest(scanned)
        best_of_all = _smallest(self._tuned(cells, arm) or scanned)
        return self._missing(cells, arm, best, self.tuning_seeds[:1]) or self._missing(
            cells, arm, best_of_all, self.tuning_seeds
        )

    def _missing(self, cells: Cells, arm: Arm, exponent: int, seeds: tuple[int, ...]) -> list[Cell]:
        around = [e for e in range(exponent - 1, exponent + 2) if e in self._rates(arm)]
        wanted = [self._cell(arm, e, seed) for e in around for seed in seeds]
        return [cell for cell in wanted if cell.key not in cells]

    def fixed(self, cells: Cells, arm: Arm) -> int:
        """Return the exponent for all ratios of an optimizer and mode: one below the best of ratio 1."""
        return self.best(cells, Arm(arm.optimizer, arm.mode, 1)) - 1

    def results(self, cells: Cells, arm: Arm, exponent: int, quantity: str) -> list[float]:
        """Return one quantity of every seed's run."""
        return [cells[arm.key(exponent, seed)][quantity] for seed in range(1, self.seeds + 1)]

    def tables(self, cells: Cells) -> list[Table]:
        tables = []
        quantities = {self.score_name: self.score, "test loss": "test_loss", "accuracy": "accuracy"}
        if self.score == "test_loss":
            del quantities["test loss"]  # the same column as the score
        for title, choose in (
            ("each at its best body rate", self.best),
            ("at one body rate for all", self.fixed),
        ):
            table = Table(title=f"{self.name}, {self.steps} steps, {self.seeds} seeds: {title}")
            for column in ("optimizer", "ratio", "body rate", *quantities):
                table.add_column(column)
            for arm in self.arms:
                exponent = choose(cells, arm)
                columns = [
                    _mean_and_interval(self.results(cells, arm, exponent, quantity))
                    for quantity in quantities.values()
                ]
                table.add_row(arm.label(), f"{arm.ratio:g}", f"{body_rate(exponent):.2g}", *columns)
            tables.append(table)
        return tables

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
                lines.append(
                    f"{optimizer}, {title}: better than one rate for all layers, simultaneous, beyond the 95% "
                    f"interval of the paired seeds ({self.score_name}): {', '.join(better) or 'nothing'}"
                    + (f"; worse: {', '.join(worse)}" if worse else "")
                )
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        for arm in self.arms:
            scores, best = self._tuned(cells, arm), self.best(cells, arm)
            if not self.quick and best in (min(scores), max(scores)):
                failures.append(
                    f"{arm.label()}, ratio {arm.ratio:g}: the best rate is at an end of the grid"
                )
            if not math.isfinite(scores[best]):
                failures.append(f"{arm.label()}, ratio {arm.ratio:g}: diverged at every rate")
        untrained = math.log(10 if self.name == "digits" else 256)
        if not all(self._tuned(cells, arm)[self.best(cells, arm)] < untrained for arm in self.arms):
            failures.append("a run has learned nothing")
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        optimizers = list(dict.fromkeys(arm.optimizer for arm in self.arms))
        figure, axes = new_figure(1 + len(optimizers))
        off_scale = []
        for axis, optimizer in zip(axes, optimizers, strict=False):
            tuned = {
                arm: {
                    body_rate(e): statistics.fmean(scores)
                    for e, scores in self._scores(cells, arm).items()
                }
                for arm in self.arms
                if arm.optimizer == optimizer
            }
            off_scale.append(draw_tuning(axis, tuned))
            axis.set(title=f"{optimizer}: tuning", ylabel=self.score_name)
        stats = {
            arm: interval(self.results(cells, arm, self.best(cells, arm), self.score))
            for arm in self.arms
        }
        draw_best(axes[-1], stats)
        axes[-1].set(title="each at its best body rate", ylabel=self.score_name)
        edge = (
            "at the upper edge: above it (triangle) or diverged (cross); " if any(off_scale) else ""
        )
        save(
            figure,
            path,
            f"solid, full: simultaneous; dashed, open: alternating; {edge}bars: 95% interval over {self.seeds} seeds; "
            "points of one rate or ratio stand side by side",
        )


def _smallest(scores: dict[int, float]) -> int:
    """Return the exponent of the smallest score, the first of equal ones."""
    return min(scores, key=lambda exponent: (scores[exponent], exponent))


def _mean_and_interval(values: list[float]) -> str:
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
