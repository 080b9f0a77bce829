"""Progress of the runs: one bar per run on a terminal, else one line per quarter of the training."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from .trainer import Trainer


class WholeTimeRemaining(TimeRemainingColumn):
    """Remaining time, shown for all runs together only: a single run pauses while others have their turn."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.fields["whole"] else Text()


class ProgressDisplay:
    """Context manager that shows progress: call `update` after each step, `end_of_round` after one turn of each run."""

    def __init__(self, runs: list[Trainer], console: Console) -> None:
        self.runs, self.console = runs, console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[loss]}"),
            WholeTimeRemaining(),
            console=console,
            refresh_per_second=4,
            speed_estimate_period=60,
            disable=not console.is_terminal,
        )
        self.bars = [self._add_bar(run.record["name"], run.settings.steps) for run in runs]
        # Steps that a resumed demo made earlier must not count for the speed estimate.
        total, done = sum(run.settings.steps for run in runs), sum(run.step_count for run in runs)
        self.whole = self._add_bar("all", total, completed=done, whole=True)
        self.update()

    def __enter__(self) -> ProgressDisplay:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self) -> None:
        for bar, run in zip(self.bars, self.runs, strict=True):
            loss = f"validation loss {run.validation_loss:.4f}" if run.evaluations else ""
            self.progress.update(bar, completed=run.step_count, loss=loss)
        self.progress.update(self.whole, completed=sum(run.step_count for run in self.runs))

    def end_of_round(self) -> None:
        first = self.runs[0]
        rounds = len(first.settings.evaluation_steps()) - 1
        if self.console.is_terminal or (first.evaluations - 1) % max(1, rounds // 4):
            return
        losses = ", ".join(f"{r.record['name']} {r.validation_loss:.4f}" for r in self.runs)
        line = f"step {first.step_count}/{first.settings.steps}: {losses}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _add_bar(self, name: str, total: int, completed: int = 0, whole: bool = False) -> int:
        return self.progress.add_task(name, total=total, completed=completed, loss="", whole=whole)
