"""Optimizer state: torch's names, allocated when a parameter first takes a step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backends.interrupts import make_calls
from ..groups.hyperparameters import turn_of
from ..groups.param_groups import param_label
from ..groups.rules import as_number
from ..groups.schemes import (
    EIGHT_BITS,
    MASTER_STATE,
    blocks_of,
    code_name,
    has_moment,
    moment_of,
    scale_name,
    state_names,
    stored_names,
)
from ..layout.rows import LARGEST_COUNT
from ..layout.slot import Slot
from ..layout.table import COUNTS, STATE_FIELD, Table
from ..memory.arena import zeros_like
from ..memory.presence import has_memory, is_abstract
from ..memory.sharding import local_tensor, shard_like
from ..numerics.codec import LARGEST_SCALE
from .given_counts import is_given
from .state_conversion import as_stored

_BEGIN_WITH_WEIGHTS = ("ema", "master")


@torch.no_grad()
def allocate_state(
    table: Table, indices: Sequence[int], state: Mapping[Tensor, dict[str, Any]]
) -> None:
    """Give the slots `indices` whatever state their group needs and they do not have yet: zeros, or the weights."""
    found: dict[int, dict[str, Tensor]] = {i: {} for i in indices}
    missing: dict[tuple[str, torch.dtype], list[int]] = defaultdict(list)
    for i, new in found.items():
        slot = table.slots[i]
        entry, group = state.get(slot.param) or {}, table.groups[slot.group]
        if "step" not in entry:
            new["step"] = table.steps[i]
        if "waited" not in entry and turn_of(group)[0] > 1:
            new["waited"] = table.waited[i]
        for name, dtype in stored_names(slot.scheme, group).items():
            if entry.get(name) is None:
                missing[name, dtype].append(i)
    addresses: list[tuple[int, str, int]] = []
    for (name, _), slots in missing.items():
        likes = [table.slots[i].state_like(name) for i in slots]
        places = zeros_like(likes, table.device, table.packs_state)
        for i, place in zip(slots, places, strict=True):
            if name in _BEGIN_WITH_WEIGHTS:
                place.copy_(table.slots[i].local)
            found[i][name] = _as_entry(table, i, name, place)
            addresses.append((i, name, place.data_ptr()))
    # all of it is there before any is noted: an entry with a part of its state fits no rule
    for address in addresses:
        table.set_state_address(*address)
    # in one go, for interrupts
    entries = [(table.state_tensors[i], state[table.slots[i].param], found[i]) for i in indices]
    make_calls([partial(held.update, new) for *both, new in entries for held in both])


def _as_entry(table: Table, i: int, name: str, place: Tensor) -> Tensor:
    """What the optimizer's state holds of a tensor: a DTensor where the parameter is one."""
    # scales have a shape of their own
    return place if name.endswith("_scale") else shard_like(place, table.slots[i].param)


@torch.no_grad()
def begin_with_weights(table: Table, indices: Sequence[int]) -> None:
    """Have the state of the slots `indices` that begins with their weights begin with those of now."""
    for i in indices:
        for name in _BEGIN_WITH_WEIGHTS:
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


def _set(
    table: Table, i: int, name: str, place: Tensor, state: Mapping[Tensor, dict[str, Any]]
) -> None:
    entry = _as_entry(table, i, name, place)
    state[table.slots[i].param][name] = table.state_tensors[i][name] = entry
    table.set_state_address(i, name, place.data_ptr())


# settings with which a group has every kind of state that its rule may have
_MOST_STATE = {
    "amsgrad": True,
    "momentum": 1,
    "ema_decay": 0.0,
    "update_every": 2,
    "update_every_grads": "mean",
}


def is_attached(table: Table, state: Mapping[Tensor, dict[str, Any]]) -> bool:
    """Tell whether the state's tensors are still the ones that the table was connected to."""
    for slot, tensors in zip(table.slots, table.state_tensors, strict=True):
        entry = state.get(slot.param, {})
        if not isinstance(entry, dict):
            return False  # to be refused by name
        if any(entry.get(name) is not tensors.get(name) for name in (*COUNTS, *STATE_FIELD)):
            return False
    return True


def check_loaded(state: Mapping[Any, Any], groups: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError or TypeError, naming the parameter, for a state that cannot be that of the parameters."""
    for index, group in enumerate(groups):
        for position, param in enumerate(group["params"]):
            entry = state.get(param, {})
            if not isinstance(entry, dict):
                label = param_label(index, group, position)
                raise TypeError(f"{label}: its state is {entry!r}, expected a dict")
            if entry:
                _check_entry(entry, param, group, param_label(index, group, position))


def _check_entry(
    entry: Mapping[str, Any], param: Tensor, group: dict[str, Any], label: str
) -> None:
    present = [name for name in STATE_FIELD if entry.get(name) is not None]
    if not present and "step" not in entry:
        return
    is_adam = group["rule"] != "sgd"
    lacks = is_adam and not (
        entry.get("step") is not None
        and all(has_moment(entry, name) for name in ("exp_avg", "exp_avg_sq"))
    )
    known = state_names({**group, **_MOST_STATE})
    known = (*known, *map(code_name, known), *map(scale_name, known), *MASTER_STATE.values())
    unknown = [name for name in present if name not in known]
    if unknown or lacks:
        raise ValueError(
            f"{label}: state dict holds {sorted(entry)}, which does not fit rule {group['rule']!r}"
        )
    for name in present:
        value, shape = entry[name], tuple(param.shape)
        if name.endswith("_scale"):
            shape = (blocks_of(param.numel()),)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{label}: state dict has {name} of shape {found}, the parameter {shape}"
            )
        if not (is_abstract(value) or has_memory(value)):
            raise ValueError(f"{label}: its state's {name} has no memory, or less than it needs")
        is_code = name == code_name(moment_of(name))
        if is_code and entry.get(scale_name(moment_of(name))) is None:
            raise ValueError(f"{label}: state dict has {name} without its scales")
        _check_kind(name, value, label)
    for name in COUNTS:
        count = entry.get(name, 0.0)
        try:
            number = as_number(count)
            is_whole = name == "step" or number.is_integer()
            # the count that float32 makes of it, too
            valid = 0 <= number < LARGEST_COUNT and np.float32(number) < LARGEST_COUNT and is_whole
        except (TypeError, ValueError, RuntimeError, OverflowError):  # no number, or several
            valid = False
        if not valid:
            raise ValueError(
                f"{label}: state dict has {name} {count!r}, expected one number >= 0 and below 2**53"
            )


def _check_kind(name: str, value: Tensor, label: str) -> None:
    """Raise ValueError for numbers of a kind that no scheme stores under this name."""
    if name in (code_name(moment_of(name)), scale_name(moment_of(name))):
        fits = value.dtype is EIGHT_BITS
        # codes are of finite numbers up to twice their scale
        if fits and name.endswith("_scale") and value.numel() and int(value.max()) > LARGEST_SCALE:
            raise ValueError(f"{label}: state dict has {name} above {LARGEST_SCALE}")
    elif name == "remainder":
        fits = value.dtype in (torch.int8, torch.int16)
    else:
        fits = value.is_floating_point()
    if not fits:
        raise ValueError(f"{label}: state dict has {name} of dtype {value.dtype}")


class Attachment:
    """The connection of a new table to the state its parameters already have.

    It is planned first, which allocates all that is needed and modifies nothing, and made then.

    Args:
        table: its step counts and state addresses are set when it is made.
        state: the optimizer's state; entries become views of `table.steps` and, where they have to move, of arenas.
        previous: state before a state dict was loaded. Loaded values are copied, into the previous tensors where there
            are any, so that the optimizer never shares memory with a checkpoint.
        own: see `is_given`.
    """

    @torch.no_grad()
    def __init__(
        self,
        table: Table,
        state: Mapping[Tensor, dict[str, Any]],
        previous: Mapping[Tensor, dict[str, Any]] | None = None,
        own: set[int] | None = None,
    ) -> None:
        self._table, self._state = table, state
        self._is_loaded, self._own = previous is not None, own
        self._entries = [state.get(slot.param) or {} for slot in table.slots]
        # by slot: what becomes of each tensor of its state, and where it will lie
        self._stored: dict[int, dict[str, tuple[Tensor, Tensor]]] = {}
        for i, (slot, entry) in enumerate(zip(table.slots, self._entries, strict=True)):
            if entry:
                old = None if previous is None else previous.get(slot.param, {})
                self._stored[i] = self._places(slot, entry, old)

    def _places(
        self, slot: Slot, entry: dict[str, Any], old: Mapping[str, Any] | None
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Each tensor of an entry, with the one that is to hold it: the same, where it may stay."""
        device, found = self._table.device, {}
        for name, value in as_stored(slot, entry).items():
            if name not in STATE_FIELD or value is None:
                continue
            local, like = local_tensor(value), slot.state_like(name)
            place = local
            if old is not None or not _fits(local, like, device):
                before = (old or {}).get(name)
                if before is not None and _fits(local_tensor(before), like, device):
                    place = local_tensor(before)
                else:
                    place = zeros_like([like], device, pack=False)[0]
            found[name] = local, place
        return found

    @torch.no_grad()
    def make(self) -> None:
        """Copy what has to move, and have table and state refer to each other."""
        table, state = self._table, self._state
        for name, counts in (("step", table.step_counts), ("waited", table.waited_counts)):
            given = {i: e[name] for i, e in enumerate(self._entries) if name in e}
            for i, count in numbers(given).items():
                counts[i] = count
        for i, stored in self._stored.items():
            entry = self._entries[i]
            has_buffer = has_moment(entry, "momentum_buffer")
            if "step" not in entry and has_buffer:
                table.step_counts[i] = 1.0
            if not self._is_loaded and is_given(entry.get("step"), self._own):
                table.given_counts[i] = table.state_tensors[i]["step"] = entry["step"]
            else:
                entry["step"] = table.state_tensors[i]["step"] = table.steps[i]
            if "waited" in entry:
                entry["waited"] = table.state_tensors[i]["waited"] = table.waited[i]
            # a buffer without a step was allocated for one that a gradient scaler skipped
            table.momentum_ready[i] = has_buffer and table.step_counts[i] > 0
            for name in STATE_FIELD:
                if name not in stored:
                    entry.pop(name, None)
                    continue
                local, place = stored[name]
                if place is not local:
                    place.copy_(local)
                _set(table, i, name, place, state)


_MOMENTUM = ("momentum_buffer", code_name("momentum_buffer"), scale_name("momentum_buffer"))


def _fits(tensor: Tensor, like: Tensor, device: torch.device) -> bool:
    """Tell whether a tensor can hold some state; `like` has no memory."""
    is_alike = (tensor.stride(), tensor.dtype, tensor.device) == (like.stride(), like.dtype, device)
    return is_alike and has_memory(tensor)


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


def numbers(counts: dict[Any, Any]) -> dict[Any, float]:
    """Numbers, or tensors of one element, as floats; a device is asked once for all of its tensors."""
    found = {}
    by_device: dict[torch.device, list[Any]] = defaultdict(list)
    for i, count in counts.items():
        if isinstance(count, Tensor) and count.device.type != "cpu":
            by_device[count.device].append(i)
        else:
            found[i] = as_number(count)
    for keys in by_device.values():
        stacked = torch.stack([counts[key].detach().view(()).double() for key in keys])
        found.update(zip(keys, stacked.tolist(), strict=True))
    return found
