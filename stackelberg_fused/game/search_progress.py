"""Progress of a search by short runs: what it costs, before it begins, and a bar with the time left."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class SearchProgress:
    """Context manager. Without rich, and where standard error is no terminal, only lines, or nothing.

    Args:
        title: names the search.
        steps: at most so many training steps.
        shown: True: always; False: never; None: where standard error is a terminal.

    Attributes:
        steps: see above; may be changed as runs turn out to be unnecessary, or more of them necessary.
    """

    def __init__(self, title: str, steps: int, shown: bool | None) -> None:
        self.title, self.steps, self.done = title, steps, 0
        self._shown = sys.stderr.isatty() if shown is None else shown
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> SearchProgress:
        if self._shown:
            self._bar = _bar()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.steps, said="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Count training steps that were taken, or turned out not to be needed."""
        self.done += steps
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=max(self.steps, self.done))

    def say(self, line: str) -> None:
        """Show what was found last."""
        if self._bar is not None:
            self._bar.update(self._task, said=line)

    def print(self, line: str) -> None:
        """Print a line that stays."""
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        elif self._shown:
            print(line, file=sys.stderr)


def _bar() -> Any:
    """Return rich's bar on standard error; None where rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total} steps"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
        console=Console(stderr=True),
        refresh_per_second=4,
        speed_estimate_period=60,
        transient=True,
        # what the user's code prints goes where it would go without the bar
        redirect_stdout=False,
        redirect_stderr=False,
    )
