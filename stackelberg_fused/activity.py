"""Which parameters of a table a step moves, as far as the host knows, and the state that they need for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from . import turns
from .gradients import Gradients
from .layout import Span, Table
from .state import allocate_state

MOST_KEPT = 256  # spans, at as many stages of waiting, of which is kept what a step does with them


@dataclass(slots=True)
class Active:
    """What a step does with a span, kept while its gradients are there or not as they were.

    Attributes:
        mask: bool [n]: slots that have a gradient.
        params: parameters that move; where counts live on the device, those that may.
        moving: bool [n]: which slots these are; or a slice, with which NumPy is faster.
        waited: float32 [n]: `waited` after the step; None where every group moves on every step, or the device counts.
        version: of the gradients.
        ready: whether all that move have taken a step.
    """

    mask: np.ndarray
    params: list[Tensor]
    moving: np.ndarray | slice
    waited: np.ndarray | None
    version: int
    ready: bool = False


class Activity:
    """What steps of a table's spans do."""

    def __init__(
        self, table: Table, gradients: Gradients, state: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        self._table, self._gradients, self._state = table, gradients, state
        self._has_state = np.zeros(len(table.slots), bool)
        self._kept: dict[tuple[Span, bytes], Active | None] = {}
        self._version = -1

    def forget(self, slots: np.ndarray) -> None:
        """Look again which state these slots (bool [n]) need."""
        self._kept.clear()
        self._has_state[slots] = False

    def of(self, span: Span, before_allocating: Callable[[str], None]) -> Active | None:
        """What a step does with a span; None where it has no gradient.

        Args:
            before_allocating: called, and may raise, with what is about to be allocated.
        """
        table, version = self._table, self._gradients.active_version
        if version != self._version or len(self._kept) > MOST_KEPT:
            self._kept.clear()
            self._version = version
        key = span, table.waited_counts.tobytes() if table.takes_turns else b""
        if key not in self._kept:
            self._kept[key] = self._look(span, before_allocating)
        return self._kept[key]

    def _look(self, span: Span, before_allocating: Callable[[str], None]) -> Active | None:
        table = self._table
        here = slice(span.first_slot, span.last_slot)
        mask = np.zeros(len(table.slots), bool)
        mask[here] = self._gradients.active[here]
        if not mask.any():
            return None
        moving, waited = mask, None
        if table.takes_turns and table.counts is None:
            now, every, sums = table.waited_counts, table.update_every, table.sums
            waits = turns.waits(now, every)
            moving = mask | (sums & turns.has_gathered(now))
            moving[: span.first_slot] = moving[span.last_slot :] = False
            moving &= ~waits
            waited = now.copy()
            waited[here] = turns.waited_after(now, every, sums & mask)[here]
        missing = np.flatnonzero((mask | moving) & ~self._has_state).tolist()
        if missing:
            before_allocating(f"the state of {table.slots[missing[0]].name}")
            allocate_state(table, missing, self._state)
            self._has_state[missing] = True
        params = [table.slots[i].param for i in np.flatnonzero(moving).tolist()]
        return Active(mask, params, slice(None) if moving.all() else moving, waited, self._version)
