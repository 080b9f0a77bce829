"""From param groups to launches: one table per device and dtype, built once, stepped in one launch each."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .arena import is_dense, move_into_arenas, owns_storage
from .backends import Backend, Work, resolve_backend
from .gradients import Gradients, LayoutChanged
from .groups import RatioWatch, check_rate, check_settings, param_label
from .hyperparameters import Rule
from .layout import Slot, Span, Table
from .sharding import is_sharded, local_tensor
from .state import allocate_state, attach_state, is_attached

log = logging.getLogger("stackelberg_fused")


@dataclass(slots=True)
class _Pending:
    """What was read and checked of one table before anything is modified."""

    changed_groups: list[int]
    changed_rates: list[int]
    span: Span
    grads: list[Tensor | None]


def collect_slots(
    groups: list[dict[str, Any]],
) -> dict[tuple[torch.device, torch.dtype], list[Slot]]:
    """One slot per distinct parameter, per device and dtype, body before head, groups in order."""
    slots: dict[tuple[torch.device, torch.dtype], list[Slot]] = defaultdict(list)
    seen: set[int] = set()
    for role in ("body", "head"):
        for index, group in enumerate(groups):
            if group["role"] != role:
                continue
            for position, param in enumerate(group["params"]):
                if id(param) in seen:
                    continue
                seen.add(id(param))
                local = local_tensor(param)
                slot = Slot(
                    param, param_label(index, group, position), index, role, local, is_dense(local)
                )
                slots[local.device, local.dtype].append(slot)
    return slots


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

    def prepare(self, role: str | None) -> _Pending:
        """Read settings and gradients, and raise if any of them is not acceptable. Modifies nothing."""
        table = self.table
        changed, rates = table.rows.changed_groups()
        for index in rates:
            check_rate(table.groups[index], index)
        for index in changed:
            check_settings(table.groups[index], index)
            if table.groups[index]["role"] != self._roles[index]:
                raise LayoutChanged(f"param group {index} changed its role")
        span = table.spans[role]
        return _Pending(changed, rates, span, self.gradients.gather(span))

    def launch(self, pending: _Pending) -> int:
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
        if table.rows.update(table.step_counts, table.momentum_ready):
            table.records["row"] = table.rows.slot_row
            table.version += 1
        staged = self.gradients.stage(pending.grads, span)
        launches = 0
        if span.last_tile > span.first_tile:
            launches = self.backend.step(
                Work(table, span, pending.grads, table.rows.rule, self.state)
            )
        for param, copy in staged:
            with torch.no_grad():
                param.copy_(copy)
        self._commit(span, active)
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

    def _commit(self, span: Span, active: _Active) -> None:
        table = self.table
        if active.everyone:
            table.step_counts += 1
            table.momentum_ready.fill(True)
        else:
            table.step_counts[active.mask] += 1
            table.momentum_ready[active.mask] = True
        table.rows.advance(
            table.step_counts, table.momentum_ready, None if active.everyone else active.mask
        )
        if self.backend.reads_memory:
            # a raw write is invisible to autograd: a backward through a changed parameter has to raise
            increment_version(active.params)

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


def _is_trained(slot: Slot) -> bool:
    """Whether a parameter is trained, as opposed to frozen."""
    return slot.param.requires_grad or slot.param.grad is not None


class Engine:
    """Every launch unit of an optimizer.

    Args:
        groups: checked param groups.
        state: the optimizer's state.
        choice: backend by name, "auto", or a backend.
        flatten: move parameters into arenas.
        previous: state before a state dict was loaded, see `attach_state`.
        watch: that of the engine before this one.
        placed: ids of parameters that were moved before; they are not moved again, and new ones are added.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        choice: str | Backend,
        flatten: bool,
        previous: Mapping[Tensor, dict[str, Any]] | None = None,
        watch: RatioWatch | None = None,
        placed: set[int] | None = None,
    ) -> None:
        self.groups = groups
        self.state = state
        self._flatten = flatten
        self._placed = set() if placed is None else placed
        slots = collect_slots(groups)
        # a frozen base model in another dtype needs no backend that can update it, until it shows a gradient
        updated = [key for key in slots if any(map(_is_trained, slots[key]))] or list(slots)
        self._frozen = [slot.param for key in slots if key not in updated for slot in slots[key]]
        slots = {key: slots[key] for key in updated}
        backends = {key: resolve_backend(choice, *key, label=slots[key][0].name) for key in slots}
        self.unplaced: dict[int, Slot] = {}
        for key_slots in slots.values():
            self._place([slot for slot in key_slots if slot.param.requires_grad])
            if flatten:
                self.unplaced.update(
                    {id(s.param): s for s in key_slots if not s.param.requires_grad}
                )
        self.units = [LaunchUnit(slots[key], groups, backends[key], state) for key in slots]
        for unit in self.units:
            attach_state(unit.table, state, previous)
        self._params = [list(group["params"]) for group in groups]
        self._has_scalars = any(p.numel() == 1 for p in chain.from_iterable(self._params))
        self._note_state()
        self.watch = watch or RatioWatch()
        self.watch.look(groups)

    @property
    def backend(self) -> str:
        """Names of the backends in use, joined by "+"."""
        return "+".join(dict.fromkeys(unit.backend.name for unit in self.units)) or "none"

    def step(self, role: str | None) -> int:
        """Update the parameters of a role, or all; returns the launches made.

        Raises before anything is modified.
        """
        if any(param.grad is not None for param in self._frozen):
            raise LayoutChanged("a parameter that was frozen has a gradient")
        pending = [unit.prepare(role) for unit in self.units]
        if self.unplaced and self._place_late(pending):
            pending = [unit.prepare(role) for unit in self.units]
        launches = 0
        for unit, work in zip(self.units, pending, strict=True):
            launches += unit.launch(work)
        if any(work.changed_groups or work.changed_rates for work in pending):
            self.watch.look(self.groups)
        if any(unit.has_new_state for unit in self.units):
            self._note_state()
        return launches

    def was_edited(self) -> bool:
        """Whether somebody replaced parameters of the groups, or their state, since the last step."""
        if self._params_were_replaced():
            return True
        try:
            # as fast as identity, where nothing was replaced
            if list(self.state.values()) == self._entries:
                return False
        except (RuntimeError, ValueError):  # tensors were compared, so one was replaced
            pass
        if not all(is_attached(unit.table, self.state) for unit in self.units):
            return True
        self._note_state()  # entries that no rule knows
        return False

    def _params_were_replaced(self) -> bool:
        now, known = [group["params"] for group in self.groups], self._params
        if not self._has_scalars:
            try:
                return now != known  # as fast as identity, where nothing was replaced
            except RuntimeError:  # tensors were compared, so one was replaced
                return True
        # comparing two equal one-element tensors would not tell them apart
        return list(map(len, now)) != list(map(len, known)) or not all(
            map(is_, chain.from_iterable(now), chain.from_iterable(known))
        )

    def _note_state(self) -> None:
        self._entries = [dict(e) if isinstance(e, dict) else e for e in self.state.values()]
        for unit in self.units:
            unit.has_new_state = False

    def _place_late(self, pending: list[_Pending]) -> bool:
        """Move parameters that were frozen at construction and now have a gradient. Returns whether any moved."""
        late = [
            slot
            for unit, work in zip(self.units, pending, strict=True)
            for slot, grad in zip(
                unit.table.slots[work.span.first_slot : work.span.last_slot],
                work.grads,
                strict=True,
            )
            if grad is not None and id(slot.param) in self.unplaced
        ]
        for slot in late:
            del self.unplaced[id(slot.param)]
        by_kind: dict[tuple[torch.device, torch.dtype], list[Slot]] = defaultdict(list)
        for slot in late:
            by_kind[slot.local.device, slot.local.dtype].append(slot)
        for slots in by_kind.values():
            self._place(slots)
        return bool(late)

    def _place(self, slots: list[Slot]) -> None:
        """Move what can be moved into arenas; say once what stays where it is."""
        if not self._flatten:
            return
        movable, staying = [], []
        for slot in slots:
            if id(slot.param) in self._placed:
                continue
            if (
                is_sharded(slot.param)
                or not slot.dense
                or not owns_storage(slot.local)
                or slot.local.is_shared()
            ):
                staying.append(slot)
            else:
                movable.append(slot)
        for slot in staying:
            log.info(
                "%s stays where it is: a shard, a layout with gaps, or a view of shared memory",
                slot.name,
            )
        move_into_arenas([slot.param for slot in movable])
        self._placed.update(id(slot.param) for slot in slots)
