"""The runs of one demo, which train in turns and share one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import checkpoint
from .progress import ProgressDisplay
from .settings import Settings
from .tasks import Task
from .trainer import Trainer


class Demo:
    """One run of the control and one run of each ratio.

    The runs take turns of one evaluation interval. Other load on the machine then slows all runs alike, so that
    their step() times can be compared.
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
        """Restore all runs from `state_dict()`.

        Raises:
            ValueError: the checkpoint was made with other data.
        """
        if state["sha256"] != self.task.data["sha256"]:
            raise ValueError("the checkpoint was made with other data (another Python version?)")
        for run, saved in zip(self.runs, state["runs"], strict=True):
            run.load_state_dict(saved)
        torch.set_rng_state(state["torch_rng"])

    def save(self) -> None:
        checkpoint.save(self.path, self.state_dict())

    def train(self, stop: checkpoint.StopRequest, console: Console) -> None:
        """Train to the end or until `stop` is set; write a checkpoint in both cases."""
        with ProgressDisplay(self.runs, console) as display:
            while not self.finished and not stop:
                # The first of the runs that are furthest behind, so that a resumed demo continues the turns.
                run = min(self.runs, key=lambda run: run.evaluations)
                for _ in run.turn():
                    display.update()
                    if stop:
                        break
                if run is self.runs[-1] and not stop:
                    self.save()
                    display.end_of_round()
            self.save()
