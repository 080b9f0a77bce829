"""The interface of an experiment: cells that are computed one by one, then tables and a plot of all of them.

A cell is a unit of work that gives one result, such as a training run with one seed.
"""

from __future__ import annotations

import importlib.util
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

Cells = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One piece of work; ``key`` identifies its result in the JSON."""

    key: str
    work: Callable[[], Any]


class Experiment(ABC):
    """A question, the cells that are computed for it, and the presentation of the answer.

    Attributes:
        name: on the command line, and of the files.
        measures_time: its cells must not run in parallel.
        computes_with: modules that cells need, beyond those of the library itself.
        shows_with: modules that tables, verdict and plot need.
        folder: where the JSON is written; a cell that takes long may keep there what it has done. None: nowhere.
    """

    name: str
    measures_time = False
    computes_with: tuple[str, ...] = ()
    shows_with: tuple[str, ...] = ("matplotlib",)

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.folder: Path | None = None

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return everything that results depend on; a file with other settings is not continued."""

    def adopt(self, settings: dict[str, Any]) -> None:  # noqa: B027
        """Take over from the settings of a file what earlier versions did differently, to show it as it was made."""

    @abstractmethod
    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        """Yield the cells to compute; a later stage may depend on the results of earlier ones."""

    @abstractmethod
    def tables(self, cells: Cells) -> list[Table]:
        """Return the tables to print."""

    @abstractmethod
    def verdict(self, cells: Cells) -> list[str]:
        """Return the conclusions as sentences, also if nothing was found."""

    @abstractmethod
    def draw(self, cells: Cells, path: Path) -> None:
        """Write the plot."""

    def check(self, cells: Cells) -> list[str]:
        """Return the contradictions to known results."""
        return []


def require(experiment_class: type[Experiment], computes: bool) -> None:
    """Exit with a line that says what to install if a module is missing, before hours of work rather than after.

    Args:
        computes: cells will be computed, not only shown.
    """
    computing = experiment_class.computes_with if computes else ()
    needed = dict.fromkeys((*computing, *experiment_class.shows_with))
    missing = [
        {"sklearn": "scikit-learn"}.get(name, name)
        for name in needed
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise SystemExit(
            f"experiment: {experiment_class.name} needs {', '.join(missing)}, not installed for {sys.executable}: "
            "pip install 'stackelberg-fused[game]'"
        )
