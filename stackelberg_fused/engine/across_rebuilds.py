"""State that outlives an engine: it is handed to the next one, built after an edit of groups or state."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..groups.rate_warnings import RatioWatch
from ..layout.table import Table
from .flat_gradients import FlatGradients
from .given_counts import OwnCounts


@dataclass
class AcrossRebuilds:
    """Changed by every engine in place.

    Attributes:
        placed: ids of parameters that were moved into arenas, or have to stay where they are.
        reported: kinds of parameters for which the user was told that the reference steps them, and parameters of which
            else something was said.
        turns: `update_every` and `update_every_grads` by id of a group, to which the counts in the state belong.
        flat: buffers of flat gradients, by the key of the table that they were made for.
        tables: of the last engine; None before the first.
        counts: the arrays that step counts of all engines lie in; who has popped an entry of the state may put it back.
        rates: by id of a group, the rate that it was given to the optimizer with.
        watch: remembers which warnings about rates were given.
        agreed_groups: the number of param groups when ranks that share parameters were last compared.
        have_ranks_trained: ranks that share parameters have agreed that a step was one of training.
    """

    placed: set[int] = field(default_factory=set)
    reported: set[Any] = field(default_factory=set)
    turns: dict[int, tuple[int, str]] = field(default_factory=dict)
    flat: dict[Any, FlatGradients] = field(default_factory=dict)
    tables: list[Table] | None = None
    counts: list[weakref.ref[np.ndarray]] = field(default_factory=list)
    rates: dict[int, Any] = field(default_factory=dict)
    watch: RatioWatch = field(default_factory=RatioWatch)
    agreed_groups: int = 0
    have_ranks_trained: bool = False

    def own_counts(self) -> OwnCounts | None:
        """The step counts that are not the user's; None before the first engine."""
        return None if self.tables is None else OwnCounts(self.tables, self.counts)

    def notes_of(self, tables: list[Table]) -> list[partial[Any]]:
        """The calls after which these are the tables of the last engine."""
        alive = [ref for ref in self.counts if ref() is not None]
        counts = [*alive, *(weakref.ref(table.step_counts) for table in tables)]
        return [partial(self.__dict__.update, tables=tables, counts=counts)]
