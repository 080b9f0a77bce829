"""All runs of one demo, one after another, and the checkpoint that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from . import checkpoint
from .report import final_loss
from .settings import Settings
from .tasks import Task
from .trainer import Trainer, run_names


class Demo:
    """Runs that are finished, the one that is not, and the way from here to the end."""

    def __init__(self, task: Task, settings: Settings, path: Path) -> None:
        self.task, self.settings, self.path = task, settings, path
        self.finished: list[dict[str, Any]] = []  # {"record", "model"} of each finished run
        self.trainer: Trainer | None = None

    @property
    def left(self) -> int:
        """How many runs are still to be finished."""
        return len(run_names(self.settings)) - len(self.finished)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_dict(),
            "sha256": self.task.data["sha256"],
            "finished": self.finished,
            "current": self.trainer and self.trainer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the data are not those of the checkpoint."""
        if state["sha256"] != self.task.data["sha256"]:
            raise ValueError("the checkpoint was made with other data (another Python version?)")
        self.finished = list(state["finished"])
        if state["current"] is not None:
            self.trainer = Trainer(self.task, self.settings, len(self.finished))
            self.trainer.load_state_dict(state["current"])

    def save(self) -> None:
        checkpoint.save(self.path, self.state_dict())

    def train(self, stop: checkpoint.StopRequest, console: Console) -> None:
        """Train what is left to train, or until `stop`; leaves a checkpoint either way."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, refresh_per_second=4) as progress:
            while self.left and not stop:
                if self.trainer is None:
                    self.trainer = Trainer(self.task, self.settings, len(self.finished))
                self._train_one(self.trainer, progress, stop)
                if self.trainer.finished:
                    done = {"record": self.trainer.record, "model": self.trainer.model.state_dict()}
                    self.finished.append(done)
                    self.trainer = None
            self.save()

    def _train_one(
        self, trainer: Trainer, progress: Progress, stop: checkpoint.StopRequest
    ) -> None:
        evaluation_steps = set(self.settings.evaluation_steps())
        if trainer.step_count == 0:
            trainer.evaluate()
        name, steps = trainer.record["name"], self.settings.steps
        bar = progress.add_task(f"{name:<11}", total=steps, loss="", completed=trainer.step_count)
        while not trainer.finished and not stop:
            trainer.advance()
            if trainer.step_count in evaluation_steps:
                trainer.evaluate()
                self.save()
            loss = f"{final_loss(trainer.record):.4f}"
            progress.update(bar, completed=trainer.step_count, loss=loss)
