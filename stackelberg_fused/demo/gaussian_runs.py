"""The demo's photograph in Gaussians: one tuned rate beside rates by kind, with several seeds.

A run takes seconds. What is finished is in the file after each run, so a demo that was stopped goes on with the next.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..report.environment import environment
from .checkpoint import CheckpointError, StopRequest, write_atomically
from .gaussian_fit import QUICK, Size, fit
from .gaussian_model import KINDS, PUBLISHED
from .gaussian_optimizers import ByKind, GaussianOptimizer, OneRate

FORMAT = 1
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Side:
    """One way to train, at its best rates in `experiment gaussians`: tests/demo/test_gaussian_runs.py compares them."""

    optimizer_class: type[GaussianOptimizer]
    rates: Mapping[str, float]
    schedule: str


SIDES = {
    "one rate": Side(OneRate, dict.fromkeys(KINDS, 0.01), "falling"),
    "by kind": Side(ByKind, {kind: 8.0 * rate for kind, rate in PUBLISHED.items()}, "constant"),
}


class Stopped(Exception):
    """Raised after a step, when somebody wants the runs to stop."""


class GaussianRuns:
    """The runs of both sides, and the file in which they are.

    Attributes:
        found: what `fit` returned, by side and seed.

    Raises:
        CheckpointError: there is a file to go on with, but not of these settings.
    """

    def __init__(self, folder: Path, quick: bool, resumes: bool) -> None:
        self.size = QUICK if quick else Size()
        self.seeds = SEEDS[:2] if quick else SEEDS
        self.path, self.picture = folder / "result.json", folder / "gaussians.png"
        self.found: dict[str, dict[str, Any]] = {name: {} for name in SIDES}
        if resumes and self.path.exists():
            self._load()

    def settings(self) -> dict[str, Any]:
        sides = {name: {"rates": s.rates, "schedule": s.schedule} for name, s in SIDES.items()}
        settings = {"size": vars(self.size), "seeds": self.seeds, "sides": sides}
        return json.loads(json.dumps(settings))

    def missing(self) -> list[tuple[str, int]]:
        """Return side and seed of the runs that are still to come: seed by seed, so that each has its pair soon."""
        every = [(name, seed) for seed in self.seeds for name in SIDES]
        return [(name, seed) for name, seed in every if str(seed) not in self.found[name]]

    def runs(self, name: str) -> list[dict[str, Any]]:
        """Return what `fit` returned, in the order of the seeds."""
        return [self.found[name][str(seed)] for seed in self.seeds]

    def psnr(self, name: str) -> list[float]:
        """Return the PSNR of the last step in dB, of each seed."""
        return [run["psnr"][str(self.size.steps)] for run in self.runs(name)]

    def gains(self) -> list[float]:
        """Return by how many dB rates by kind are better, of each seed."""
        sides = [self.psnr(name) for name in ("by kind", "one rate")]
        return [ours - theirs for ours, theirs in zip(*sides, strict=True)]

    def train(self, stop: StopRequest, console: Console) -> None:
        """Make the missing runs, or those up to a stop; a run that is stopped is made again."""
        missing = self.missing()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("Gaussians", total=len(missing) * self.size.steps)

            def after_step(step: int) -> None:
                progress.advance(bar)
                if stop:
                    raise Stopped

            try:
                for name, seed in missing:
                    self._run(name, seed, after_step)
                    last = self.found[name][str(seed)]["psnr"][str(self.size.steps)]
                    console.print(f"{name}, seed {seed}: {last:.2f} dB", highlight=False)
            except Stopped:
                return

    def _run(self, name: str, seed: int, after_step: Any) -> None:
        side, pictured = SIDES[name], seed == self.seeds[0]
        schedule = side.schedule
        self.found[name][str(seed)] = fit(
            side.optimizer_class, side.rates, schedule, seed, self.size, pictured, after_step
        )
        content = {
            "format": FORMAT,
            "settings": self.settings(),
            "environment": environment(),
            "runs": self.found,
        }
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(self.path, lambda partial: partial.write_text(text))

    def _load(self) -> None:
        try:
            content = json.loads(self.path.read_text())
            is_ours = content["format"] == FORMAT and content["settings"] == self.settings()
            found = {name: dict(content["runs"][name]) for name in SIDES}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path} is not a result of this demo: {error}") from error
        if not is_ours:
            raise CheckpointError(f"{self.path} was made with other settings or another version")
        self.found = found

    def draw(self) -> None:
        """Write the picture.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from .gaussian_picture import draw

        sides = {name: self.runs(name) for name in SIDES}
        draw(self.picture, self.size, sides, "the best rates of `experiment gaussians`")


def mean_and_range(values: Iterable[float], spec: str) -> str:
    """Return the mean and, on a line of their own, the least and the most."""
    values = list(values)
    least, most = min(values), max(values)
    return f"{statistics.fmean(values):{spec}}\n{least:{spec}} to {most:{spec}}"
