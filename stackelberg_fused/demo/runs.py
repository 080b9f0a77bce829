"""All runs of one demo, in turns, and the checkpoint that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from . import checkpoint
from .settings import Settings
from .tasks import Task
from .trainer import Trainer


class Demo:
    """One run for the control and one for each ratio.

    They take turns, from one evaluation to the next: what the machine does besides training then
    falls on all alike, and their step() times can be compared.
    """

    def __init__(self, task: Task, settings: Settings, path: Path) -> None:
        self.task, self.settings, self.path = task, settings, path
        self.runs = [Trainer(task, settings, index) for index in range(1 + len(settings.ratios))]

    @property
    def records(self) -> list[dict[str, Any]]:
        return [run.record for run in self.runs]

    @property
    def finished(self) -> bool:
        return all(run.finished for run in self.runs)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_dict(),
            "sha256": self.task.data["sha256"],
            "runs": [run.state_dict() for run in self.runs],
            "torch_rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the data are not those of the checkpoint."""
        if state["sha256"] != self.task.data["sha256"]:
            raise ValueError("the checkpoint was made with other data (another Python version?)")
        for run, saved in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])

    def save(self) -> None:
        checkpoint.save(self.path, self.state_dict())

    def train(self, stop: checkpoint.StopRequest, console: Console) -> None:
        """Train to the end, or until `stop`; leaves a checkpoint either way."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]}"),
            TimeRemainingColumn(),
        )
        progress = Progress(
            *columns,
            console=console,
            refresh_per_second=4,
            speed_estimate_period=60,  # a run moves only in its turn: look back over several
            disable=not console.is_terminal,
        )
        with progress:
            bars = [self._add_bar(progress, run) for run in self.runs]
            while not self.finished and not stop:
                # The first of those that are furthest behind: so a resumed demo takes up the turns.
                index = min(range(len(bars)), key=lambda i: self.runs[i].evaluations)
                self._one_turn(index, progress, bars[index], stop)
                if index == len(bars) - 1 and not stop:
                    self.save()
                    self._log(console)
            self.save()

    def _one_turn(
        self, index: int, progress: Progress, bar: Any, stop: checkpoint.StopRequest
    ) -> None:
        """Train one run up to its next evaluation, and evaluate."""
        run = self.runs[index]
        goal = self.settings.evaluation_steps()[run.evaluations]
        while run.step_count < goal and not stop:
            run.advance()
            progress.update(bar, completed=run.step_count)
        if run.step_count == goal:
            run.evaluate()
            progress.update(bar, loss=f"{run.validation_loss:.4f}")

    def _add_bar(self, progress: Progress, run: Trainer) -> Any:
        loss = f"{run.validation_loss:.4f}" if run.evaluations else ""
        name, steps = run.record["name"], self.settings.steps
        return progress.add_task(f"{name:<11}", total=steps, completed=run.step_count, loss=loss)

    def _log(self, console: Console) -> None:
        """A line a quarter where there is no terminal for a progress bar."""
        steps = self.settings.steps
        count, total = self.runs[0].step_count, len(self.settings.evaluation_steps()) - 1
        quarter = (self.runs[0].evaluations - 1) % max(1, total // 4) == 0
        if quarter and not console.is_terminal:
            losses = ", ".join(
                f"{run.record['name']} {run.validation_loss:.4f}" for run in self.runs
            )
            console.print(f"step {count}/{steps}: {losses}", highlight=False, soft_wrap=True)
