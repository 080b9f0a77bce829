"""Plans of steps: which parameters of a table move, as far as the host knows, and which state they still lack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..groups.param_groups import ROLES
from ..layout.part import Part
from ..layout.slot import Span
from ..layout.table import Table
from ..numerics import turns
from .gradients import Gradients
from .group_turns import GroupTurns
from .state import allocate_state, begin_with_weights

MAX_PLANS = (
    256  # remembered: of each span, one for every stage of waiting and every set of gradients
)


@dataclass(slots=True)
class StepPlan:
    """The effect of a step on a span in which the same parameters have gradients.

    Attributes:
        has_grad: bool [n]: slots that have a gradient.
        moves: bool [n]: slots that move; where counts live on the device, those that may.
        count: the call that adds one to the step counts of those that move.
        written: bool [n]: slots that the step changes: those that move, and those that share a ball with them; where
            ranks share it, others may move it.
        params: the parameters of the slots that are written.
        lacks_state: slots whose state has to be allocated before the step.
        waits_on_host: the host counts how long groups wait.
        resting: roles of which every parameter waits for its turn, as far as the host knows.
        playing: the other roles that have parameters here.
        ready: every slot that moves has taken a step before.
    """

    has_grad: np.ndarray
    moves: np.ndarray
    count: tuple[partial[np.ndarray]]
    written: np.ndarray
    params: list[Tensor]
    lacks_state: list[int]
    waits_on_host: bool
    resting: frozenset[str]
    playing: frozenset[str]
    ready: bool = False


class StepPlanner:
    """Plans the steps of a table's spans, and remembers the plans.

    Args:
        table: the parameters.
        gradients: of the table.
        state: the optimizer's state, by parameter.
        turns_of_groups: shared by all tables.
    """

    def __init__(
        self,
        table: Table,
        gradients: Gradients,
        state: Mapping[Tensor, dict[str, Any]],
        turns_of_groups: GroupTurns,
    ) -> None:
        self._table, self._gradients, self._state = table, gradients, state
        self._turns_of_groups = turns_of_groups
        self._uncounted: list[int] | None = None  # slots that take turns and have no count yet
        self._has_state = np.zeros(len(table.slots), bool)
        self._is_early = np.zeros(
            len(table.slots), bool
        )  # its state was made before its first step
        self._plans: dict[tuple[Span | Part, bool, bytes, bytes], StepPlan | None] = {}
        self._actives: dict[Span | Part, bytes] = {}  # of the gradients' version
        self._version = -1

    def forget(self, slots: np.ndarray) -> None:
        """Look again which state these slots (bool [n]) need."""
        self._plans.clear()
        self._has_state[slots] = False
        self._uncounted = None

    def allocate_early(self, slots: list[int]) -> None:
        """Give slots their state before the step that needs it; no group begins to wait by it."""
        without = [i for i in slots if not self._table.state_tensors[i]]
        allocate_state(self._table, slots, self._state)
        self.note_early(without)

    def note_early(self, slots: list[int]) -> None:
        """Know that slots got their state before the step that needs it."""
        self._uncounted = None
        self._is_early[slots] = True

    def allocate(self, plan: StepPlan) -> None:
        """Give the slots of a plan the state that they lack."""
        table = self._table
        allocate_state(table, plan.lacks_state, self._state)
        self._turns_of_groups.begin(
            table.slots[i].group for i in plan.lacks_state if "waited" in table.state_tensors[i]
        )
        self._uncounted = None
        early = [i for i in plan.lacks_state if self._is_early[i]]
        begin_with_weights(self._table, early)  # somebody may have set them meanwhile
        self._is_early[early] = False
        self._has_state[plan.lacks_state] = True
        plan.lacks_state = []

    def counting(self, span: Span | Part, plan: StepPlan) -> list[partial[Any]]:
        """The calls that count the step where the host counts, of built-in functions alone."""
        table, here = self._table, span.here
        calls: list[partial[Any]] = [*plan.count]
        if not plan.ready:
            calls.append(partial(table.momentum_ready.__setitem__, plan.moves, True))
        if plan.waits_on_host:
            now, every = table.waited_counts[here], table.update_every[here]
            after = turns.waited_after(now, every, (table.sums & plan.has_grad)[here])
            takes_part = self._turns_of_groups.begun[table.rows.slot_group[here]]
            waited = np.where(takes_part, after, now)
            calls.append(partial(table.waited_counts.__setitem__, here, waited))
        return calls

    def plan(self, span: Span | Part, counted: bool) -> StepPlan | None:
        """Plan a step of a span; None where it does nothing.

        Args:
            counted: the step has a gradient in some table, so that groups that wait do so one step less.
        """
        table, version = self._table, self._gradients.active_version
        if len(self._plans) > MAX_PLANS or self._has_woken(span):
            self._plans.clear()
        if version != self._version:
            self._actives.clear()
            self._version = version
        if span not in self._actives:
            self._actives[span] = self._gradients.active[span.here].tobytes()
        # where the device counts, the host's counts are out of date
        stage = b""
        if table.takes_turns and table.counts is None:
            waits = turns.waits(table.waited_counts, table.update_every)
            stage = (waits + 2 * turns.has_sum(table.waited_counts)).tobytes()
        # the same parameters have gradients again where an actor moves in every second step, or players take turns
        key = span, counted, stage, self._actives[span]
        if key not in self._plans:
            self._plans[key] = self._make(span, counted)
        plan = self._plans[key]
        if plan is not None and plan.lacks_state:  # another plan may have allocated it since
            plan.lacks_state = [i for i in plan.lacks_state if not self._has_state[i]]
        return plan

    def _has_woken(self, span: Span | Part) -> bool:
        """Tell whether a parameter that takes turns was unfrozen, and so waits from now on, with a gradient or not."""
        table = self._table
        if not table.takes_turns:
            return False
        if self._uncounted is None:
            self._uncounted = [
                i
                for i in np.flatnonzero(table.update_every > 1).tolist()
                if "waited" not in table.state_tensors[i]
            ]
        return any(
            table.slots[i].param.requires_grad
            for i in self._uncounted
            if span.first_slot <= i < span.last_slot
        )

    def _make(self, span: Span | Part, counted: bool) -> StepPlan | None:
        table = self._table
        here = span.here
        has_grad = np.zeros(len(table.slots), bool)
        has_grad[here] = self._gradients.active[here]
        if not has_grad.any() and not (counted and table.takes_turns):
            return None
        moves = needs_counts = has_grad
        if table.takes_turns:
            moves, needs_counts = self._turns(has_grad, here)
        lacks_state = np.flatnonzero((needs_counts | moves) & ~self._has_state).tolist()
        joint = table.joint_sets
        written = moves if joint is None else joint.written(moves, here)
        params = [table.slots[i].param for i in np.flatnonzero(written).tolist()]
        on_host = table.takes_turns and table.counts is None
        counts = table.step_counts
        count = (partial(np.add, counts, moves.astype(np.float32), counts),)
        resting, playing = self._resting(on_host)
        return StepPlan(
            has_grad, moves, count, written, params, lacks_state, on_host, resting, playing
        )

    def _resting(self, on_host: bool) -> tuple[frozenset[str], frozenset[str]]:
        """The roles that wait here, as far as the host knows, and those that do not."""
        table = self._table
        waits = turns.waits(table.waited_counts, table.update_every) & on_host
        here = {role: waits[table.spans[role].here] for role in ROLES}
        present = {role: bool(of.all()) for role, of in here.items() if len(of)}
        resting = frozenset(role for role, rests in present.items() if rests)
        return resting, frozenset(present) - resting

    def _turns(
        self, has_grad: np.ndarray, here: slice | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The slots that move, and those whose waiting is counted, where groups take turns."""
        table = self._table
        now, every, sums = table.waited_counts, table.update_every, table.sums
        inside = np.zeros(len(table.slots), bool)
        inside[here] = True
        # a parameter without a gradient waits too, and a state dict has to say how long
        trained = np.array([slot.param.requires_grad for slot in table.slots], bool)
        needs_counts = has_grad | (inside & (every > 1) & trained)
        if table.counts is None:
            waits = turns.waits(now, every)
            return inside & (has_grad | (sums & turns.has_sum(now))) & ~waits, needs_counts
        # only the device knows which slots have a sum
        may = np.array(["waited" in tensors for tensors in table.state_tensors], bool)
        return has_grad | (inside & sums & (trained | may)), needs_counts
