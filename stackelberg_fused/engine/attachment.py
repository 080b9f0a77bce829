"""The connection of a table to state that its parameters already have."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..groups.schemes import (
    has_moment,
)
from ..layout.slot import Slot
from ..layout.table import STATE_FIELD, Table
from ..memory.presence import has_memory, is_abstract
from ..memory.sharding import local_tensor
from .given_counts import OwnCounts, check_given, is_given
from .state import NewState, note_in_table, zeros_of
from .state_checks import numbers
from .state_conversion import as_stored


class Attachment:
    """The connection of a new table to the state its parameters already have.

    It is planned first, which allocates all that is needed and modifies nothing. Then the table is connected, which
    nobody knows yet, and last come `calls`, which modify the state.

    Args:
        table: nobody's yet.
        state: the optimizer's state; entries become views of `table.steps` and, where they have to move, of arenas.
        previous: state before a state dict was loaded. Loaded values are copied, into the previous tensors where there
            are any, so that the optimizer never shares memory with a checkpoint.
        own: see `is_given`.
        gives: every trained parameter gets whatever state it lacks.
    """

    @torch.no_grad()
    def __init__(
        self,
        table: Table,
        state: Mapping[Tensor, dict[str, Any]],
        previous: Mapping[Tensor, dict[str, Any]] | None = None,
        own: OwnCounts | None = None,
        gives: bool = False,
    ) -> None:
        self._table, self._state = table, state
        self._is_loaded, self._own = previous is not None, own
        self._entries = [state.get(slot.param) or {} for slot in table.slots]
        # by slot: what becomes of each tensor of its state, and where it will lie
        self._stored: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        for i, (slot, entry) in enumerate(zip(table.slots, self._entries, strict=True)):
            if entry:
                if self._is_given(entry):
                    check_given(entry["step"], slot.name)
                old = None if previous is None else previous.get(slot.param, {})
                self._stored[i] = self._places(i, entry, old)

        if previous is not None:
            self._separate()
        slots = enumerate(table.slots if gives else ())
        # tables of which every parameter is stepped, and tools that look for state find it only here
        trained = [i for i, slot in slots if slot.param.requires_grad]
        self.without = [i for i in trained if not self._entries[i]]
        self._new = NewState(table, trained, {i: self._held(i) for i in trained})

    def _separate(self) -> None:
        """Copy loaded tensors that another one is to be copied into: a state dict may hold the state of before."""
        held = {id(place): i for i, found in self._stored.items() for _, place in found.values()}
        for i, found in self._stored.items():
            for name, (local, place) in found.items():
                if place is not local and id(local) in held:
                    self._stored[i][name] = local.clone(), place

    def _held(self, i: int) -> dict[str, Any]:
        """What a slot will have of its own state."""
        counts = {name: None for name in ("waited",) if name in self._entries[i]}
        return {**counts, **({"step": None} if self._entries[i] else {}), **self._stored.get(i, {})}

    def _is_given(self, entry: dict[str, Any]) -> bool:
        """Tell whether a step count stays where it is: in a tensor of the user's."""
        return not self._is_loaded and is_given(entry.get("step"), self._own)

    def _places(
        self, i: int, entry: dict[str, Any], old: Mapping[str, Any] | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Each tensor of an entry, with the one that is to hold it: the same, where it may stay."""
        slot, found = self._table.slots[i], {}
        for name, value in as_stored(slot, entry).items():
            if name not in STATE_FIELD or value is None:
                continue
            local = place = local_tensor(value)
            if old is not None or not self._fits(local, slot, name):
                before = (old or {}).get(name)
                if before is not None and self._fits(local_tensor(before), slot, name):
                    place = local_tensor(before)
                else:
                    place = zeros_of(self._table, [i], name)[0]
            found[name] = local, place
        return found

    def _fits(self, tensor: Tensor, slot: Slot, name: str) -> bool:
        """Tell whether a tensor can hold some state of a slot."""
        like, device = slot.state_like(name), self._table.device
        found = tensor.stride(), tensor.dtype, tensor.device
        return found == (like.stride(), like.dtype, device) and (
            has_memory(tensor) or is_abstract(slot.local)
        )

    def connect(self) -> list[partial[Any]]:
        """Connect the table to its state; returns the calls, of built-in functions alone, that change that state."""
        table, calls = self._table, list[partial[Any]]()
        for name, counts in (("step", table.step_counts), ("waited", table.waited_counts)):
            given = {i: e[name] for i, e in enumerate(self._entries) if name in e}
            for i, count in numbers(given).items():
                counts[i] = count
        for i in self._stored:
            calls += self._connect_slot(i)
        return calls

    def _connect_slot(self, i: int) -> list[partial[Any]]:
        table, entry, stored = self._table, self._entries[i], self._stored[i]
        tensors, calls = table.state_tensors[i], list[partial[Any]]()
        has_buffer = has_moment(entry, "momentum_buffer")
        if "step" not in entry and has_buffer:
            table.step_counts[i] = 1.0
        if self._is_given(entry):
            table.given_counts[i] = tensors["step"] = entry["step"]
        else:
            tensors["step"] = table.steps[i]
        if "waited" in entry:
            tensors["waited"] = table.waited[i]
        # a buffer without a step was allocated for one that a gradient scaler skipped
        table.momentum_ready[i] = has_buffer and table.step_counts[i] > 0
        for name in STATE_FIELD:
            if name not in stored:
                calls.append(partial(entry.pop, name, None))
                continue
            local, place = stored[name]
            if place is not local:
                # of detached ones: autograd would ask for no_grad(), which is Python
                calls.append(partial(place.detach().copy_, local.detach()))
            note_in_table(table, i, name, place)
        return [*calls, partial(entry.update, {**tensors})]

    def connect_new(self) -> list[partial[Any]]:
        """As `connect`, for the state that trained parameters lacked."""
        self._new.note_addresses()
        return [*self._new.calls(self._state)]
