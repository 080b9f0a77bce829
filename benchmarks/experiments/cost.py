"""The cost of the game: an alternating step beside a simultaneous one, and the curvature of a model.

The model has a million parameters.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from ...demo.tasks import TASKS
from ...game.alternating import alternating_step
from ...game.curvature import curvature
from ...groups.split import split_body_head
from ...optimizers.adam import StackelbergAdamW
from ..timing import Action, interleave, quantiles
from .experiment import Cell, Cells, Experiment
from .plot_style import COLORS, new_figure, save
from .training import cross_entropy

KINDS = (
    "simultaneous",
    "alternating_step, 1 head step",
    "alternating_step, 4 head steps",
    "mode='alternating', closure",
)


def measure(quick: bool, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Time the kinds of steps interleaved; return quantiles in nanoseconds by kind."""
    task = TASKS["language"](quick)
    actions = {kind: Action(_make_step(kind, task), "cpu", lambda: None) for kind in KINDS}
    samples = interleave(actions, rounds, seconds, 0)
    return {
        kind: quantiles(values) | {"samples_ns": [round(v) for v in values]}
        for kind, values in samples.items()
    }


def _make_step(kind: str, task: Any) -> Callable[[], None]:
    torch.manual_seed(0)
    model = task.model()
    groups = split_body_head(model, head=task.head)
    mode = "alternating" if kind.startswith("mode") else "simultaneous"
    optimizer = StackelbergAdamW(groups, lr=1e-4, mode=mode)
    generator = torch.Generator().manual_seed(0)
    batches = itertools.cycle([task.batch(generator) for _ in range(8)])

    def closure(inputs: Tensor, targets: Tensor) -> Tensor:
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    def step() -> None:
        inputs, targets = next(batches)
        if kind.startswith("alternating_step"):
            head_steps = 4 if "4" in kind else 1
            alternating_step(
                model.features, model.lm_head, cross_entropy, optimizer, inputs, targets, head_steps
            )
        else:
            optimizer.step(partial(closure, inputs, targets), zero_grad=True)

    return step


def measure_curvature(width: int) -> dict[str, Any]:
    """Time `curvature`, at both of its points, of an MLP on digits with two hidden layers of this width."""
    task = TASKS["digits"](False)
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Linear(64, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, 64),
        nn.Tanh(),
    )
    head = nn.Linear(64, 10)
    inputs, targets = task.batch(torch.Generator().manual_seed(0))
    start = time.perf_counter()
    curvature(body, head, inputs, targets, "cross_entropy", ridge=1e-3)
    seconds = time.perf_counter() - start
    parameters = sum(p.numel() for module in (body, head) for p in module.parameters())
    return {"parameters": parameters, "seconds": seconds}


class Cost(Experiment):
    """The times of steps and of the curvature."""

    name = "cost"
    measures_time = True
    computes_with = ("scipy", "sklearn")

    def settings(self) -> dict[str, Any]:
        return {"kinds": KINDS, "model": "demo GPT", "threads": torch.get_num_threads()}

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        rounds, seconds = (3, 2.0) if self.quick else (60, 60.0)
        width = 8 if self.quick else 900
        yield [
            Cell("times", partial(measure, self.quick, rounds, seconds)),
            Cell("curvature", partial(measure_curvature, width)),
        ]

    def tables(self, cells: Cells) -> list[Table]:
        table = Table(
            title="One iteration of the demo's GPT: forward, backward, update (milliseconds)"
        )
        for column in ("step", "median", "p20 .. p80", "x simultaneous"):
            table.add_column(column)
        times = cells["times"]
        for kind in KINDS:
            t = times[kind]
            table.add_row(
                kind,
                f"{t['p50_ns'] / 1e6:.2f}",
                f"{t['p20_ns'] / 1e6:.2f} .. {t['p80_ns'] / 1e6:.2f}",
                f"{t['p50_ns'] / times['simultaneous']['p50_ns']:.2f}",
            )
        return [table]

    def verdict(self, cells: Cells) -> list[str]:
        times = cells["times"]
        shared, evaluated_twice = (
            times[KINDS[i]]["p50_ns"] / times["simultaneous"]["p50_ns"] for i in (1, 3)
        )
        return [
            f"An alternating step costs {100 * (shared - 1):.0f}% more than a simultaneous one where the body's "
            f"forward pass is shared, {100 * (evaluated_twice - 1):.0f}% where the model is evaluated twice.",
            f"curvature(), at both of its points, of a model of {cells['curvature']['parameters']:,} parameters: "
            f"{cells['curvature']['seconds']:.1f} s.",
        ]

    def draw(self, cells: Cells, path: Path) -> None:
        figure, (axis,) = new_figure(1, height=2.4)
        times = cells["times"]
        values = [times[kind]["p50_ns"] / 1e6 for kind in KINDS]
        axis.barh(KINDS, values, color=[COLORS[1], *[COLORS[0]] * 3])
        axis.bar_label(axis.containers[0], fmt="%.1f ms", padding=3)
        axis.invert_yaxis()
        axis.grid(visible=False)
        save(figure, path, "demo GPT, one iteration, median of interleaved rounds")
