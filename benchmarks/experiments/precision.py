"""The final loss of every way to store weights and state, compared with float32's.

All schemes of a seed have the same initial weights, batches and rates. With bfloat16 parameters the whole model is
bfloat16, including the forward and backward passes; the scheme with a float32 master shows the effect of that alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch.optim.lr_scheduler import LambdaLR

from ...demo.settings import DEFAULTS
from ...demo.tasks import TASKS, Task
from ...demo.trainer import warmup_cosine
from ...optimizers.adam import StackelbergAdamW
from .experiment import Cell, Cells, Experiment
from .plot_style import COLORS, new_figure, save
from .statistics import difference, interval


@dataclass(frozen=True)
class StorageScheme:
    """One way to store weights and state.

    Attributes:
        param: "float32" or "bfloat16".
        master, state: `master` and `state_dtype` of the optimizer.
    """

    param: str
    master: str | None = None
    state: str = "float32"

    def __str__(self) -> str:
        master = "" if self.param == "float32" else f" {self.master or 'nearest'}"
        return f"{self.param}{master}, state {self.state}"


FLOAT32 = StorageScheme("float32")
SCHEMES = (
    FLOAT32,
    StorageScheme("float32", state="bfloat16"),
    StorageScheme("float32", state="8bit"),
    StorageScheme("bfloat16", "fp32"),
    StorageScheme("bfloat16", "split16"),
    StorageScheme("bfloat16", "split8"),
    StorageScheme("bfloat16", "kahan"),
    StorageScheme("bfloat16", "stochastic"),
    StorageScheme("bfloat16", None),
    StorageScheme("bfloat16", "kahan", "bfloat16"),
    StorageScheme("bfloat16", "stochastic", "bfloat16"),
    StorageScheme("bfloat16", "split8", "8bit"),
    StorageScheme("bfloat16", "stochastic", "8bit"),
    StorageScheme("bfloat16", None, "8bit"),
)
BETAS = (0.9, 0.999)  # with this second beta, a step changes the second moments least


def train(task: Task, scheme: StorageScheme, seed: int, steps: int) -> dict[str, float]:
    """Train once; return the mean loss after the last step and the bytes per parameter.

    The loss is that of the training data if the task has a fixed set of it, else of the validation data.
    """
    # two of the schemes do so on purpose
    warnings.filterwarnings("ignore", ".*rounded to nearest after every step")
    torch.manual_seed(seed)
    model = task.model().to(getattr(torch, scheme.param))
    defaults = DEFAULTS[task.name]
    optimizer = StackelbergAdamW(
        model.named_parameters(),
        lr=defaults["lr"],
        betas=BETAS,
        weight_decay=defaults["weight_decay"],
        master=scheme.master,
        state_dtype=scheme.state,
        seed=seed,
    )
    schedule = partial(warmup_cosine, steps=steps, warmup=0.05, final=0.1)
    scheduler = LambdaLR(optimizer, schedule)
    batches = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        loss = _loss(model, task.batch(batches))
        loss.backward()
        optimizer.step(zero_grad=True)
        scheduler.step()
        if not bool(loss.isfinite()):
            return {"loss": math.inf, "bytes": math.nan}
    data = task.training or task.validation
    with torch.no_grad():
        losses = [(_loss(model, batch).item(), len(batch[1])) for batch in data]
    mean = sum(loss * rows for loss, rows in losses) / sum(rows for _, rows in losses)
    return {"loss": mean, "bytes": _bytes_by_dtype(model, optimizer) / _size(model)}


def _loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    inputs, targets = batch
    dtype = next(model.parameters()).dtype
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    outputs = model(inputs).flatten(0, -2).float()
    return torch.nn.functional.cross_entropy(outputs, targets.flatten())


def _bytes_by_dtype(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of parameters and state without step counts, gradients and padding between tensors."""
    state = [t for entry in optimizer.state.values() for n, t in entry.items() if n != "step"]
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *state))


def _size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Precision(Experiment):
    """Final losses of digits and language by storage scheme."""

    name = "precision"
    computes_with = ("sklearn",)
    shows_with = ("matplotlib", "scipy")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.schemes = (FLOAT32, SCHEMES[-3]) if quick else SCHEMES
        self.seeds = 2 if quick else 5
        self.steps = {"digits": 30, "language": 10} if quick else {"digits": 400, "language": 300}

    @cached_property
    def tasks(self) -> dict[str, Task]:
        return {name: TASKS[name](self.quick and name == "language") for name in self.steps}

    def settings(self) -> dict[str, Any]:
        return {
            "data": {name: task.data for name, task in self.tasks.items()},
            "schemes": [str(scheme) for scheme in self.schemes],
            "steps": self.steps,
            "seeds": self.seeds,
            "betas": BETAS,
        }

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield [
            Cell(
                _key(name, scheme, seed),
                partial(self._train, name, scheme, seed),
            )
            for name in self.steps
            for seed in range(self.seeds)
            for scheme in self.schemes
        ]

    def _train(self, name: str, scheme: StorageScheme, seed: int) -> dict[str, float]:
        return train(self.tasks[name], scheme, seed, self.steps[name])

    def losses(self, cells: Cells, name: str, scheme: StorageScheme) -> list[float]:
        """Return the losses by seed."""
        return [cells[_key(name, scheme, seed)]["loss"] for seed in range(self.seeds)]

    def tables(self, cells: Cells) -> list[Table]:
        table = Table(
            title=f"final loss, {self.seeds} seeds; difference from float32, seed by seed"
        )
        table.add_column("stored as")
        table.add_column("bytes per parameter", justify="right")
        for name in self.steps:
            table.add_column(f"{name} (spread)")
            table.add_column("difference")
        for scheme in self.schemes:
            row = [str(scheme), f"{cells[_key('language', scheme, 0)]['bytes']:.2f}"]
            for name in self.steps:
                losses = self.losses(cells, name, scheme)
                mean, half = difference(losses, self.losses(cells, name, FLOAT32))
                row += [
                    f"{sum(losses) / len(losses):.4f} ({_spread(losses):.4f})",
                    "" if scheme == FLOAT32 else f"{mean:+.4f} ± {half:.4f}",
                ]
            table.add_row(*row)
        return [table]

    def worse(self, cells: Cells) -> list[str]:
        """Return schemes whose mean loss in a task exceeds float32's by more than the spread over seeds."""
        worse = []
        for name in self.steps:
            exact = self.losses(cells, name, FLOAT32)
            for scheme in self.schemes:
                losses = self.losses(cells, name, scheme)
                if not (sum(losses) - sum(exact)) / len(exact) <= _spread(exact):
                    worse.append(f"{scheme} ({name})")
        return worse

    def verdict(self, cells: Cells) -> list[str]:
        worse = "; ".join(self.worse(cells)) or "none"
        return [f"worse than float32 by more than the standard deviation over seeds: {worse}"]

    def check(self, cells: Cells) -> list[str]:
        recommended = (
            StorageScheme("bfloat16", "split8", "8bit"),
            StorageScheme("bfloat16", "split16"),
        )
        if self.quick:
            first = [self.losses(cells, "digits", s)[0] for s in self.schemes]
            return [] if max(first) < math.log(10) else ["a run has learned nothing"]
        worse = self.worse(cells)
        return [
            f"{s} is worse than float32" for s in recommended if any(str(s) in w for w in worse)
        ]

    def draw(self, cells: Cells, path: Path) -> None:
        figure, axes = new_figure(len(self.steps))
        for axis, name in zip(axes, self.steps, strict=True):
            exact = self.losses(cells, name, FLOAT32)
            for y, scheme in enumerate(reversed(self.schemes)):
                losses = self.losses(cells, name, scheme)
                differences = [a - b for a, b in zip(losses, exact, strict=True)]
                axis.plot(differences, [y] * len(losses), "o", color=COLORS[1], alpha=0.4, ms=3.5)
                mean, half = interval(differences)
                axis.errorbar(mean, y, xerr=half, fmt="s", color=COLORS[0], capsize=3, ms=5)
            axis.axvspan(-_spread(exact), _spread(exact), color=COLORS[2], alpha=0.12, lw=0)
            axis.set(title=name, xlabel="final loss, less float32's of the same seed")
            axis.locator_params(axis="x", nbins=6)
            axis.set_yticks(range(len(self.schemes)), [str(s) for s in reversed(self.schemes)])
        axes[-1].set_yticklabels([])
        save(
            figure,
            path,
            f"square: mean and 95% interval of {self.seeds} seeds; band: float32's standard deviation over them",
        )


def _spread(losses: list[float]) -> float:
    mean = sum(losses) / len(losses)
    return math.sqrt(sum((x - mean) ** 2 for x in losses) / (len(losses) - 1))


def _key(task: str, scheme: StorageScheme, seed: int) -> str:
    return f"{task}, {scheme}, seed {seed}"
