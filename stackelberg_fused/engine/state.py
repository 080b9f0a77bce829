"""Optimizer state: torch's names, allocated when a parameter first takes a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backends.interrupts import make_calls
from ..groups.hyperparameters import turn_of
from ..groups.schemes import (
    code_name,
    has_moment,
    scale_name,
    stored_names,
)
from ..layout.table import COUNTS, STATE_FIELD, Table
from ..memory.arena import lasting, zeros_like
from ..memory.presence import is_abstract
from ..memory.sharding import local_tensor, shard_like
from ..numerics.block_rows import layout_of, scale_shape
from .state_checks import numbers

BEGIN_WITH_WEIGHTS = ("ema", "master")


class NewState:
    """Whatever state the slots `indices` of a table need and do not have yet: zeros, or the weights.

    Allocating it modifies nothing. Then the table notes it, and `calls` put it into the optimizer's state.

    Args:
        entries: of each of these slots what it has, by name.
    """

    @lasting
    @torch.no_grad()
    def __init__(
        self, table: Table, indices: Sequence[int], entries: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self._table = table
        self._found: dict[int, dict[str, Tensor]] = {i: {} for i in indices}
        self._addresses: list[tuple[int, str, int]] = []
        missing: dict[tuple[str, torch.dtype], list[int]] = defaultdict(list)
        for i, new in self._found.items():
            self._count(i, entries[i], new)
            slot = table.slots[i]
            for name, dtype in stored_names(slot.scheme, table.groups[slot.group]).items():
                if entries[i].get(name) is None:
                    missing[name, dtype].append(i)
        for (name, _), slots in missing.items():
            places = zeros_of(table, slots, name, table.packs_state)
            for i, place in zip(slots, places, strict=True):
                if name in BEGIN_WITH_WEIGHTS:
                    place.copy_(table.slots[i].local)
                self._found[i][name] = _as_entry(table, i, name, place)
                self._addresses.append((i, name, place.data_ptr()))

    def _count(self, i: int, entry: Mapping[str, Any], new: dict[str, Tensor]) -> None:
        table = self._table
        if "step" not in entry:
            new["step"] = table.steps[i]
        if "waited" not in entry and turn_of(table.groups[table.slots[i].group])[0] > 1:
            new["waited"] = table.waited[i]

    def note_addresses(self) -> None:
        """Have the table's records say where it lies."""
        for address in self._addresses:
            self._table.set_state_address(*address)

    def calls(self, state: Mapping[Tensor, dict[str, Any]]) -> list[partial[None]]:
        """The calls that put it into the table's and the optimizer's state; the entries themselves are made here."""
        table = self._table
        return [
            partial(held.update, new)
            for i, new in self._found.items()
            for held in (table.state_tensors[i], state[table.slots[i].param])
        ]


@lasting
@torch.no_grad()
def allocate_state(
    table: Table, indices: Sequence[int], state: Mapping[Tensor, dict[str, Any]]
) -> None:
    """Give the slots `indices` whatever state their group needs and they do not have yet."""
    # all of it is there before any is noted: an entry with a part of its state fits no rule
    new = NewState(table, indices, {i: state.get(table.slots[i].param) or {} for i in indices})
    new.note_addresses()
    make_calls(new.calls(state))  # in one go, for interrupts


def zeros_of(table: Table, indices: Sequence[int], name: str, pack: bool = False) -> list[Tensor]:
    """Return zeros for a state of the slots `indices`, see `zeros_like`; for a wrapper whatever its class makes."""
    slots = [table.slots[i] for i in indices]
    plain = [slot.state_like(name) for slot in slots if not is_abstract(slot.local)]
    zeros = iter(zeros_like(plain, table.device, pack))
    return [
        torch.zeros_like(slot.local.detach()) if is_abstract(slot.local) else next(zeros)
        for slot in slots
    ]


def _as_entry(table: Table, i: int, name: str, place: Tensor) -> Tensor:
    """What the optimizer's state holds of a tensor: a DTensor where the parameter is one."""
    param, shape = table.slots[i].param, None
    if name.endswith("_scale"):  # they have a shape of their own
        shape = scale_shape(layout_of(param))
    return shard_like(place, param, shape)


@torch.no_grad()
def begin_with_weights(table: Table, indices: Sequence[int]) -> None:
    """Have the state of the slots `indices` that begins with their weights begin with those of now."""
    for i in indices:
        for name in BEGIN_WITH_WEIGHTS:
            if name in table.state_tensors[i]:
                local_tensor(table.state_tensors[i][name]).copy_(table.slots[i].local)


def drop_averages(
    table: Table, indices: Sequence[int], state: Mapping[Tensor, dict[str, Any]]
) -> bool:
    """Forget the averages of slots that are not averaged any more; returns whether there were any."""
    dropped = False
    for i in indices:
        if table.state_tensors[i].pop("ema", None) is not None:
            (state.get(table.slots[i].param) or {}).pop("ema", None)
            table.set_state_address(i, "ema", 0)
            dropped = True
    return dropped


def note_in_table(table: Table, i: int, name: str, place: Tensor) -> Tensor:
    """Connect a slot to a tensor of its state; returns what the optimizer's state is to hold of it."""
    entry = table.state_tensors[i][name] = _as_entry(table, i, name, place)
    table.set_state_address(i, name, place.data_ptr())
    return entry


def is_attached(table: Table, state: Mapping[Tensor, dict[str, Any]]) -> bool:
    """Tell whether the state's tensors are still the ones that the table was connected to."""
    for slot, tensors in zip(table.slots, table.state_tensors, strict=True):
        entry = state.get(slot.param, {})
        if not isinstance(entry, dict):
            return False  # to be refused by name
        if any(entry.get(name) is not tensors.get(name) for name in (*COUNTS, *STATE_FIELD)):
            return False
    return True


_MOMENTUM = ("momentum_buffer", code_name("momentum_buffer"), scale_name("momentum_buffer"))


def without_unused_momentum(packed: dict[Any, Any]) -> dict[Any, Any]:
    """Packed state without the momentum of parameters that have not taken a step, as a gradient scaler skipped theirs.

    torch's SGD would take such a buffer of zeros for one of an earlier step, and dampen the first gradient.
    """
    steps = {
        key: entry["step"]
        for key, entry in packed.items()
        if isinstance(entry, dict) and has_moment(entry, "momentum_buffer") and "step" in entry
    }
    unused = {key for key, step in numbers(steps).items() if step == 0}
    return {
        key: {n: v for n, v in entry.items() if n not in _MOMENTUM} if key in unused else entry
        for key, entry in packed.items()
    }
