"""One table with the backend that updates it: what a step reads and checks first, and then launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .backends import Backend, Work
from .gradients import Gathered, Gradients, LayoutChanged
from .groups import check_rate, check_settings
from .hyperparameters import LARGEST_COUNT
from .layout import Slot, Span, Table
from .reader import make_places
from .rules import Rule
from .sharding import local_tensor
from .state import allocate_state


@dataclass(slots=True)
class Pending:
    """What was read and checked of one table before anything is modified."""

    changed_groups: list[int]
    changed_rates: list[int]
    span: Span
    gathered: Gathered


@dataclass(slots=True)
class _Active:
    """Which slots of a span have gradients, kept while that does not change."""

    version: int
    mask: np.ndarray
    params: list[Tensor]
    everyone: bool


class LaunchUnit:
    """One table with the backend that updates it and the gradients that feed it."""

    def __init__(
        self,
        slots: list[Slot],
        groups: list[dict[str, Any]],
        backend: Backend,
        state: Mapping[Tensor, dict],
    ) -> None:
        self.table = table = Table(slots, groups)
        self.backend = backend
        self.state = state
        self.gradients = Gradients(table, backend.reads_memory)
        self._params = [slot.param for slot in slots]
        self._has_state = np.zeros(len(slots), bool)
        self._active: dict[Span, _Active] = {}
        self._roles = {slot.group: slot.role for slot in slots}
        self.has_new_state = False
        self._places = make_places([])

    def note_state(self) -> None:
        """Take where the state lies now for where it should lie."""
        self.has_new_state = False
        # one that a step count alone stands for is looked at by its step count
        entries = [
            [t for name, t in tensors.items() if name != "step"] or list(tensors.values())
            for tensors in self.table.state_tensors
        ]
        self._places = make_places([local_tensor(t) for tensors in entries for t in tensors])

    def state_moved(self) -> bool:
        """Whether somebody exchanged the memory of a state tensor (`state.data = ...`)."""
        return self._places.moved()

    def prepare(self, role: str | None) -> Pending:
        """Read gradients, step counts and what was edited, and raise if any of them is not acceptable.

        Modifies nothing.
        """
        table = self.table
        changed, rates = table.rows.changed_groups()
        for index in rates:
            check_rate(table.groups[index], index)
        for index in changed:
            check_settings(table.groups[index], index)
            if table.groups[index]["role"] != self._roles[index]:
                raise LayoutChanged(f"param group {index} changed its role")
        counts = table.step_counts
        if not (counts.min() >= 0 and counts.max() < LARGEST_COUNT):
            i = int(np.argmin((counts >= 0) & (counts < LARGEST_COUNT)))
            raise ValueError(f"{table.slots[i].name}: its state's step is {counts[i]}")
        span = table.spans[role]
        return Pending(changed, rates, span, self.gradients.gather(span))

    def launch(self, pending: Pending) -> int:
        """Update the parameters of a span that have gradients; returns the launches made."""
        table, span = self.table, pending.span
        if pending.changed_groups:
            self._accept(pending.changed_groups, pending.changed_rates)
        elif pending.changed_rates:
            table.rows.accept([], pending.changed_rates)
        active = self._active.get(span)
        if active is None or active.version != self.gradients.active_version:
            active = self._activate(span)
        if not active.params:
            return 0
        if table.rows.update():
            table.records["row"] = table.rows.slot_row
            table.version += 1
        self.gradients.stage(pending.gathered, span)
        if self.backend.reads_memory:
            # a raw write is invisible to autograd: a backward through a changed parameter has to raise
            increment_version(active.params)
        launches = 0
        if span.last_tile > span.first_tile:
            work = Work(table, span, self.gradients.gradient, table.rows.rule, self.state)
            launches = self.backend.step(work)
        for param, copy in pending.gathered.write_back:
            with torch.no_grad():
                param.copy_(copy)
        if active.everyone:
            table.step_counts += 1
            table.momentum_ready.fill(True)
        else:
            table.step_counts[active.mask] += 1
            table.momentum_ready[active.mask] = True
        return launches

    def _activate(self, span: Span) -> _Active:
        """Note which slots step, and allocate the state that any of them lacks."""
        mask = np.zeros(len(self._params), bool)
        here = slice(span.first_slot, span.last_slot)
        mask[here] = self.gradients.active[here]
        indices = np.flatnonzero(mask).tolist()
        missing = [i for i in indices if not self._has_state[i]]
        if missing:
            allocate_state(self.table, missing, self.state)
            self.has_new_state = True
            self._has_state[missing] = True
        active = _Active(
            self.gradients.active_version,
            mask,
            [self._params[i] for i in indices],
            bool(mask.all()),
        )
        self._active[span] = active
        return active

    def _accept(self, changed: list[int], rates: list[int]) -> None:
        table = self.table
        before = {index: table.rows.group_rule(index) for index in changed}
        table.rows.accept(changed, rates)
        flipped = [index for index in changed if table.rows.group_rule(index) != before[index]]
        if not flipped and self._has_state.any():
            return
        # a rule may need state now that it did not need before
        self._active.clear()
        affected = np.isin(table.rows.slot_group, changed)
        self._has_state[affected] = False
        for i in np.flatnonzero(affected).tolist():
            rule = table.rows.group_rule(table.slots[i].group)
            entry = self.state.get(table.slots[i].param) or {}
            table.momentum_ready[i] = (
                not (rule & Rule.MOMENTUM) or entry.get("momentum_buffer") is not None
            )
