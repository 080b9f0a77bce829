"""A new head on a trained body: which rates, and does the head go first? In and out of distribution.

Kumar et al. (ICLR 2022, arXiv 2202.10054) find that fine-tuning everything distorts the features of a pretrained body
where the new head begins at random: a head that is trained alone at first, and then everything, is as good in
distribution and ten points better out of it. Here every arm has the same number of batches and its own rate, the one of
best validation accuracy in distribution over tuning seeds; the shifted tests choose nothing. Seeds are paired: one
seed means the same pretrained body, the same new head, and the same batches everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ...game.significance import sign_flip_p_value
from .arm import GRID_STEP
from .experiment import Cell, Cells, Experiment
from .finetune_arms import ARMS, EXACT_FIRST, HEAD_ONLY, ONE_RATE, PROBES_FIRST, Arm
from .finetune_data import BATCH, NEW_CLASSES, TASKS, Task, fingerprint
from .finetune_training import fine_tune, loss_and_accuracy, pretrained
from .statistics import difference, interval

LEVEL = 0.05  # of significance
TEST = "in distribution"
HEAD_FIRST = (*PROBES_FIRST, EXACT_FIRST)
SWEPT = (ONE_RATE, PROBES_FIRST[1], EXACT_FIRST)  # tested at every rate of the grid too
QUICK_ARMS = (ONE_RATE, Arm("together", 10), Arm("alternating"), *PROBES_FIRST[1:], HEAD_ONLY)


class Finetune(Experiment):
    """Accuracies by task, optimizer and arm."""

    name = "finetune"
    computes_with = ("sklearn",)
    shows_with = ("matplotlib", "scipy")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.tasks = tuple(map(quickly, TASKS)) if quick else TASKS
        self.arms = QUICK_ARMS if quick else ARMS
        self.tuning_seeds = tuple(range(1000, 1001 if quick else 1004))
        self.blocks = [(task, name) for task in self.tasks for name in task.grids]
        # a step on digits costs little
        self.swept = [(task, name) for task, name in self.blocks if task.name == "digits"]

    def settings(self) -> dict[str, Any]:
        tasks = {
            task.name: {
                "sha256": fingerprint(task),
                "classes": task.classes,
                "new_classes": NEW_CLASSES,
                "train_and_validation_by_class": [task.train, task.validation],
                "pretraining_steps": task.pretraining,
                "steps": task.steps,
                "batch_size": BATCH,
                "shifts": list(task.shifts),
                "seeds": list(task.seeds),
                "exponents": {name: list(grid) for name, grid in task.grids.items()},
            }
            for task in self.tasks
        }
        return {
            "tasks": tasks,
            "arms": [arm.label for arm in self.arms],
            "exponents_are": "of half decades; one rate has quarters too",
            "tuning_seeds": self.tuning_seeds,
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        probes = [arm for arm in self.arms if arm in PROBES_FIRST]
        # these begin at the best rate of head only
        yield self._stage("tuning", self._tune, [a for a in self.arms if a not in probes], cells)
        yield self._stage("tuning", self._tune, probes, cells)
        yield self._stage("evaluation", self._evaluate, list(self.arms), cells)
        swept = [arm for arm in self.arms if arm in SWEPT]
        yield self._stage("tests by rate", self._sweep, swept, cells, self.swept)

    def _stage(
        self,
        part: str,
        work: Any,
        arms: list[Arm],
        cells: Cells,
        blocks: list[tuple[Task, str]] | None = None,
    ) -> list[Cell]:
        return [
            Cell(_key(task, name, arm, part), partial(work, cells, task, name, arm))
            for task, name in blocks or self.blocks
            for arm in arms
        ]

    def _probe(self, cells: Cells, task: Task, name: str, arm: Arm) -> float | None:
        """Return the exponent of the head's rate while it learns alone at first."""
        return self.exponent(cells, task, name, HEAD_ONLY) if arm in PROBES_FIRST else None

    def _tune(self, cells: Cells, task: Task, name: str, arm: Arm) -> dict[str, Any]:
        """Return by exponent loss and accuracy of each tuning seed's validation set."""
        probe = self._probe(cells, task, name, arm)
        return {
            f"{e:g}": [
                loss_and_accuracy(
                    *fine_tune(task, name, arm, e, seed, probe),
                    pretrained(task, seed)[1].validation,
                )
                for seed in self.tuning_seeds
            ]
            for e in arm.exponents(task.grids[name])
        }

    def _evaluate(self, cells: Cells, task: Task, name: str, arm: Arm) -> dict[str, Any]:
        """Return by test the accuracies of all seeds."""
        exponent = self.exponent(cells, task, name, arm)
        return self._tested(cells, task, name, arm, exponent, task.seeds)

    def _sweep(self, cells: Cells, task: Task, name: str, arm: Arm) -> dict[str, Any]:
        """Return by exponent and test the accuracies of the tuning seeds, which chose the rates without them."""
        return {
            f"{e:g}": self._tested(cells, task, name, arm, e, self.tuning_seeds)
            for e in task.grids[name]
        }

    def _tested(
        self, cells: Cells, task: Task, name: str, arm: Arm, exponent: float, seeds: Iterable[int]
    ) -> dict[str, list[float]]:
        """Return by test the accuracies of some seeds."""
        probe = self._probe(cells, task, name, arm)
        found: dict[str, list[float]] = {test: [] for test in (TEST, *task.shifts)}
        for seed in seeds:
            trained = fine_tune(task, name, arm, exponent, seed, probe)
            data = pretrained(task, seed)[1]
            for test, examples in {TEST: data.test, **data.shifted}.items():
                found[test].append(loss_and_accuracy(*trained, examples)[1])
        return found

    def tuned(self, cells: Cells, task: Task, name: str, arm: Arm) -> dict[float, float]:
        """Return by exponent the mean accuracy of the tuning seeds' validation sets."""
        found = cells[_key(task, name, arm, "tuning")]
        return {float(e): sum(a for _, a in runs) / len(runs) for e, runs in found.items()}

    def exponent(self, cells: Cells, task: Task, name: str, arm: Arm) -> float:
        """Return the exponent of the best rate: the smallest of those with the best accuracy."""
        scores = self.tuned(cells, task, name, arm)
        return min(scores, key=lambda e: (-scores[e], e))

    def accuracies(self, cells: Cells, task: Task, name: str, arm: Arm, test: str) -> list[float]:
        """Return the accuracies of all seeds in percent."""
        return [100 * a for a in cells[_key(task, name, arm, "evaluation")][test]]

    def gain(
        self, cells: Cells, task: Task, name: str, arm: Arm, test: str
    ) -> tuple[float, float, float]:
        """Compare an arm with one tuned rate.

        Returns:
            The mean of the paired differences in points, half the width of its 95 % interval, and the p-value of a
            gain, times the number of arms that are compared.
        """
        ours, one = (self.accuracies(cells, task, name, a, test) for a in (arm, ONE_RATE))
        p = sign_flip_p_value([b - a for a, b in zip(ours, one, strict=True)])
        return *difference(ours, one), min(1.0, p * (len(self.arms) - 1))

    def tables(self, cells: Cells) -> list[Table]:
        tables = [self._table(cells, task, name) for task, name in self.blocks]
        return tables + [self._rates_table(cells, task, name) for task, name in self.swept]

    def _table(self, cells: Cells, task: Task, name: str) -> Table:
        table = Table(
            title=f"{task.name}, {name}: accuracy in % after {task.steps} batches, {len(task.seeds)} "
            "seeds (to one rate)"
        )
        for column in ("arm", "rates", TEST):
            table.add_column(column)
        for test in task.shifts:
            table.add_column(test)
            table.add_column("p")
        for arm in self.arms:
            row = [arm.label, self.rates(cells, task, name, arm)]
            for test in (TEST, *task.shifts):
                mean = interval(self.accuracies(cells, task, name, arm, test))[0]
                more, half, p = self.gain(cells, task, name, arm, test)
                row.append(
                    f"{mean:.1f}" + ("" if arm == ONE_RATE else f" ({more:+.1f} ± {half:.1f})")
                )
                if test != TEST:
                    row.append("" if arm == ONE_RATE else say_p(p))
            table.add_row(*row)
        return table

    def _rates_table(self, cells: Cells, task: Task, name: str) -> Table:
        """Compare one rate with a head that goes first at every rate of the grid."""
        arms = [arm for arm in self.arms if arm in SWEPT]
        table = Table(
            title=f"{task.name}, {name}, {len(self.tuning_seeds)} tuning seeds: "
            + " / ".join(arm.label for arm in arms)
        )
        for column in ("rate", TEST, *task.shifts):
            table.add_column(column)
        swept = [cells[_key(task, name, arm, "tests by rate")] for arm in arms]
        for e in map("{:g}".format, task.grids[name]):
            row = [
                " / ".join(f"{100 * interval(tests[e][test])[0]:.1f}" for tests in swept)
                for test in (TEST, *task.shifts)
            ]
            table.add_row(f"{GRID_STEP ** float(e):.2g}", *row)
        return table

    def rates(self, cells: Cells, task: Task, name: str, arm: Arm) -> str:
        """Name the best rates of body and head, and the one of a head that begins alone."""
        body, head = arm.rates(self.exponent(cells, task, name, arm))
        if arm == HEAD_ONLY:
            return f"{head:.2g}"
        probe = self._probe(cells, task, name, arm)
        first = "" if probe is None else f"{GRID_STEP**probe:.2g}, then "
        return first + (f"{body:.2g}" if arm.ratio == 1 else f"{body:.2g}, {head:.2g}")

    def verdict(self, cells: Cells) -> list[str]:
        lines, survived, compared = [], 0, 0
        for task, name in self.blocks:
            for test in task.shifts:
                parts = []
                for arm in (a for a in self.arms if a in (*HEAD_FIRST, HEAD_ONLY)):
                    more, half, p = self.gain(cells, task, name, arm, test)
                    parts.append(f"{arm.label} {more:+.1f} ± {half:.1f} (p {say_p(p, '= ')})")
                    compared += arm != HEAD_ONLY
                    survived += arm != HEAD_ONLY and p <= LEVEL
                lines.append(f"{task.name}, {name}, {test}, points to one rate: {'; '.join(parts)}")
        lines.append(
            "The gain of a head that goes first, out of distribution, survives the tuning of one rate in "
            f"{survived} of {compared} comparisons."
        )
        return lines

    def check(self, cells: Cells) -> list[str]:
        failures = []
        for task, name in self.blocks:
            for arm in self.arms:
                scores = self.tuned(cells, task, name, arm)
                best = self.exponent(cells, task, name, arm)
                where = f"{task.name}, {name}, {arm.label}"
                if not self.quick and best in (min(scores), max(scores)):
                    failures.append(f"{where}: the best rate is at an end of the grid")
                mean, half = interval(self.accuracies(cells, task, name, arm, TEST))
                if not self.quick and not mean - half > 100 / NEW_CLASSES:
                    failures.append(f"{where}: no better than chance")
            one, alone = (
                interval(self.accuracies(cells, task, name, arm, TEST))[0]
                for arm in (ONE_RATE, HEAD_ONLY)
            )
            if not one > max(alone, 150 / NEW_CLASSES):
                failures.append(
                    f"{task.name}, {name}: in distribution {one:.1f} % with everything trained, {alone:.1f} % with "
                    "the head only"
                )
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        from .finetune_plot import draw

        draw(self, cells, path)


def quickly(task: Task) -> Task:
    """Return the task with few steps and rates."""
    digits = task.name == "digits"
    return replace(
        task,
        pretraining=200 if digits else 60,
        steps=80 if digits else 100,
        grids={"AdamW": range(-6, -2)},
        seeds=range(3),
    )


def say_p(p: float, equal: str = "") -> str:
    """Write a p-value; 10 000 drawn signs tell nothing about much smaller ones."""
    return "< 0.005" if p < 0.005 else f"{equal}{p:.2g}"


def _key(task: Task, name: str, arm: Arm, part: str) -> str:
    return f"{task.name}, {name}, {arm.label}, {part}"
