"""Turns of groups whose parameters lie in several tables: they wait alike in all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..groups.hyperparameters import turn_of
from ..groups.rules import sums_gradients
from ..layout.table import Table
from ..memory.sharding import local_tensor

# what no group has: its counts are of no round of its own, and it begins one when it is accepted
NO_TURN = (0, "")


class GroupTurns:
    """Which groups have begun to count the steps on which they wait; one for all tables of an engine.

    A group begins when the first of its parameters gets a count in its state, where state dicts find it. Until then it
    takes part in no step, whichever table its parameters lie in and whatever else that table steps.

    Args:
        num_groups: of the optimizer.

    Attributes:
        begun: bool [groups].
    """

    def __init__(self, num_groups: int) -> None:
        self.begun = np.zeros(num_groups, bool)
        self._tables: list[Table] = []

    def connect(self, tables: Iterable[Table]) -> None:
        """Take over the counts of tables that are connected to the state.

        Parameters without a count, of which no gradient was seen yet or whose state was emptied, get that of their
        group.
        """
        self._tables = [*tables]
        counted = [
            (slot.group, slot.position, count // 2 * 2)
            for table in self._tables
            for slot, count, tensors in zip(
                table.slots, table.waited_counts.tolist(), table.state_tensors, strict=True
            )
            if "waited" in tensors
        ]
        # in the order of the groups, as they lie where one table has them all
        known = {group: count for group, _, count in sorted(counted)}
        self.begun[list(known)] = True
        for table in self._tables:
            for i, slot in enumerate(table.slots):
                if slot.group in known and "waited" not in table.state_tensors[i]:
                    table.waited_counts[i] = known[slot.group]

    def begin(self, groups: Iterable[int]) -> None:
        """Have groups count from the coming step on, of which a parameter has just got a count in its state."""
        new = [group for group in set(groups) if not self.begun[group]]
        if not new:
            return
        self.begun[new] = True
        for table in self._tables:
            # a kernel that counts does so for all that lies in its table
            slots = np.flatnonzero(np.isin(table.rows.slot_group, new))
            if table.counts is not None and len(slots):
                table.waited[slots] = 0.0


def unfitting_rounds(tables: Iterable[Table], groups: Sequence[dict[str, Any]]) -> set[int]:
    """The groups whose parameters waited in rounds of another setting, which cannot be gone on with.

    That is where the state was saved, or left by a group that was replaced, with another `update_every` or
    `update_every_grads`: more steps than a round has, or a mean of which the first gradients are missing.
    """
    found = set()
    for table in tables:
        for i in np.flatnonzero(table.waited_counts >= 2).tolist():
            group = groups[table.slots[i].group]
            tensors = table.state_tensors[i]
            if "waited" not in tensors:
                continue  # nothing was saved; it waits with its group
            is_over = table.waited_counts[i] // 2 >= turn_of(group)[0]
            if is_over or (sums_gradients(group) and "grad_sum" not in tensors):
                found.add(table.slots[i].group)
    return found


def begin_anew(table: Table, slots: Sequence[int]) -> None:
    """Forget that these waited for their turn, and the gradients that were summed up meanwhile."""
    if not slots:
        return
    table.waited[slots] = 0.0
    for i in slots:
        grad_sum = table.state_tensors[i].get("grad_sum")
        if grad_sum is not None:
            local_tensor(grad_sum).zero_()
