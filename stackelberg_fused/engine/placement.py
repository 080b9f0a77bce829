"""The parameters of each table, and their move into arenas."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..groups.constraints import joint_set
from ..groups.param_groups import param_label
from ..groups.rules import as_integer
from ..groups.schemes import check_scheme, scheme_of
from ..layout.slot import Kind, Slot
from ..memory.arena import is_dense, move_into_arenas, owns_storage
from ..memory.overlap import SHARED, overlaps_itself
from ..memory.presence import has_memory, is_abstract, is_uninitialized
from ..memory.sharding import is_sharded, local_tensor
from ..numerics.random_bits import stream_key

log = logging.getLogger("stackelberg_fused")


def collect_slots(groups: list[dict[str, Any]]) -> dict[Kind, list[Slot]]:
    """One slot per distinct parameter that has a shape, per device and dtype, body before head, groups in order."""
    slots: dict[Kind, list[Slot]] = defaultdict(list)
    seen: set[int] = set()
    for role in ("body", "head"):
        for index, group in enumerate(groups):
            if group["role"] != role:
                continue
            for position, param in enumerate(group["params"]):
                if id(param) in seen or is_uninitialized(param):
                    continue
                seen.add(id(param))
                local = local_tensor(param)
                label = param_label(index, group, position)
                is_strided = local.layout is torch.strided and not local.is_nested
                dense = is_strided and is_dense(local) and not local.is_neg()
                key = stream_key(as_integer(group["seed"]), index, position)
                scheme = scheme_of(group, local)
                slot = Slot(param, label, index, role, position, local, dense, scheme, key)
                slots[_kind(slot, group)].append(slot)
    return slots


def _kind(slot: Slot, group: dict[str, Any]) -> Kind:
    local, present = slot.local, not is_abstract(slot.local)
    if joint_set(group) is None:
        return Kind(local.device, local.dtype, slot.scheme.is_direct, has_memory=present)
    direct = all(scheme_of(group, local_tensor(p)).is_direct for p in group["params"])
    return Kind(local.device, local.dtype, direct, not direct, present)


def merged(slots: Iterable[list[Slot]]) -> list[Slot]:
    """The slots of several kinds as those of one table: body first, head last, groups in order."""
    every = (slot for found in slots for slot in found)
    return sorted(every, key=lambda slot: (slot.role == "head", slot.group, slot.position))


def misfit(slot: Slot, groups: list[dict[str, Any]]) -> str:
    """Why a parameter cannot be updated, or stored as its group says; empty where it can."""
    try:
        check_scheme(slot.name, groups[slot.group], slot.param)
    except (TypeError, ValueError) as error:
        return str(error)
    return f"{slot.name}: {SHARED}" if overlaps_itself(slot.local) else ""


def is_trained(slot: Slot) -> bool:
    """Tell whether a parameter is trained, as opposed to frozen."""
    return slot.param.requires_grad or slot.param.grad is not None


class Placement:
    """Moves parameters into arenas, each once.

    Args:
        flatten: whether to move them at all.
        placed: ids of parameters that were moved before, or have to stay; new ones are added.
    """

    def __init__(self, flatten: bool, placed: set[int]) -> None:
        self._flatten, self._placed = flatten, placed
        self._frozen: dict[int, Slot] = {}

    def place(self, slots: list[Slot]) -> None:
        """Move the parameters that are trained, and remember those that are frozen."""
        self._move([slot for slot in slots if slot.param.requires_grad])
        if self._flatten:
            self._frozen.update({id(s.param): s for s in slots if not s.param.requires_grad})

    @property
    def has_frozen(self) -> bool:
        """Tell whether any parameter was frozen when it came here and may still be trained."""
        return bool(self._frozen)

    def place_late(self) -> bool:
        """Move parameters that were frozen and now have a gradient; returns whether there were any."""
        late = [slot for slot in self._frozen.values() if slot.param.grad is not None]
        for slot in late:
            del self._frozen[id(slot.param)]
        self._move(late)
        return bool(late)

    def _move(self, slots: Iterable[Slot]) -> None:
        """Move what can be moved; say once what stays where it is."""
        if not self._flatten:
            return
        new = [slot for slot in slots if id(slot.param) not in self._placed]
        movable: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
        for slot in new:
            if _can_move(slot):
                movable[slot.local.device, slot.local.dtype].append(slot.param)
                continue
            log.info(
                "%s stays where it is: a shard, a layout with gaps, a view of shared memory, or without memory",
                slot.name,
            )
        for params in movable.values():
            move_into_arenas(params)
        self._placed.update(id(slot.param) for slot in new)


def _can_move(slot: Slot) -> bool:
    return (
        slot.dense
        and not is_sharded(slot.param)
        and has_memory(slot.local)
        and owns_storage(slot.local)
        and not slot.local.is_shared()
    )
