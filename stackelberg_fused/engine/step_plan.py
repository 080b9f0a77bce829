"""Which parameters of a table a step moves, as far as the host knows, and the state that they need for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..layout.slot import Span
from ..layout.table import Table
from ..numerics import turns
from .gradients import Gradients
from .state import allocate_state

MOST_PLANS = 256  # spans, at as many stages of waiting, of which is kept what a step does with them


@dataclass(slots=True)
class StepPlan:
    """What a step does with a span, kept while its gradients are there or not as they were.

    Attributes:
        mask: bool [n]: slots that have a gradient.
        moves: bool [n]: slots that move; where counts live on the device, those that may.
        counts: float32 [n]: what is added to their step counts.
        written: bool [n]: slots that the step changes: these, and who shares a ball with them.
        params: their parameters.
        waits_on_host: whether the host counts how long groups wait.
        version: of the gradients.
        ready: whether all that move have taken a step.
    """

    mask: np.ndarray
    moves: np.ndarray
    counts: np.ndarray
    written: np.ndarray
    params: list[Tensor]
    waits_on_host: bool
    version: int
    ready: bool = False


class StepPlanner:
    """What steps of a table's spans do."""

    def __init__(
        self, table: Table, gradients: Gradients, state: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        self._table, self._gradients, self._state = table, gradients, state
        self._has_state = np.zeros(len(table.slots), bool)
        self._plans: dict[tuple[Span, bool, bytes], StepPlan | None] = {}
        self._version = -1

    def forget(self, slots: np.ndarray) -> None:
        """Look again which state these slots (bool [n]) need."""
        self._plans.clear()
        self._has_state[slots] = False

    def allocate_trained(self) -> None:
        """Give every parameter that is trained its state before its first step."""
        trained = [i for i, slot in enumerate(self._table.slots) if slot.param.requires_grad]
        allocate_state(self._table, trained, self._state)

    def advance_waiting(self, span: Span, plan: StepPlan) -> None:
        """Count the step for groups that take turns."""
        table, here = self._table, slice(span.first_slot, span.last_slot)
        now, every = table.waited_counts[here], table.update_every[here]
        now[:] = turns.waited_after(now, every, (table.sums & plan.mask)[here])

    def of(
        self, span: Span, counted: bool, before_allocating: Callable[[str], None]
    ) -> StepPlan | None:
        """What a step does with a span; None where it does nothing.

        Args:
            counted: whether the step has a gradient in some table: then groups wait one step less in all.
            before_allocating: called, and may raise, with what is about to be allocated.
        """
        table, version = self._table, self._gradients.active_version
        if version != self._version or len(self._plans) > MOST_PLANS:
            self._plans.clear()
            self._version = version
        # the host's counts say nothing any more where the device counts
        stage = b""
        if table.takes_turns and table.counts is None:
            waits = turns.waits(table.waited_counts, table.update_every)
            stage = (waits + 2 * turns.has_sum(table.waited_counts)).tobytes()
        key = span, counted, stage
        found = self._plans.get(key, self)  # None is an answer
        if found is self:
            found = self._plans[key] = self._look(span, counted, before_allocating)
        return found

    def _look(
        self, span: Span, counted: bool, before_allocating: Callable[[str], None]
    ) -> StepPlan | None:
        table = self._table
        here = slice(span.first_slot, span.last_slot)
        mask = np.zeros(len(table.slots), bool)
        mask[here] = self._gradients.active[here]
        if not mask.any() and not (counted and table.takes_turns):
            return None
        moves, counts = mask, mask
        if table.takes_turns:
            now, every, sums = table.waited_counts, table.update_every, table.sums
            inside = np.zeros(len(table.slots), bool)
            inside[here] = True
            # also who has no gradient waits, and a state dict has to say how long
            trained = np.array([slot.param.requires_grad for slot in table.slots], bool)
            counts = mask | (inside & (every > 1) & trained)
            if table.counts is None:
                waits = turns.waits(now, every)
                moves = inside & (mask | (sums & turns.has_sum(now))) & ~waits
            else:
                # only the device knows who has a sum
                may = np.array(["waited" in tensors for tensors in table.state_tensors], bool)
                moves = mask | (inside & sums & (trained | may))
        missing = np.flatnonzero((counts | moves) & ~self._has_state).tolist()
        if missing:
            before_allocating(f"the state of {table.slots[missing[0]].name}")
            allocate_state(table, missing, self._state)
            self._has_state[missing] = True
        written = moves if table.joint_sets is None else table.joint_sets.written(moves)
        params = [table.slots[i].param for i in np.flatnonzero(written).tolist()]
        on_host = table.takes_turns and table.counts is None
        return StepPlan(
            mask, moves, moves.astype(np.float32), written, params, on_host, self._version
        )
