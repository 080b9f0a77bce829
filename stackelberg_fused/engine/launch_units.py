"""The launch units of an optimizer: which backend and table each slot goes to, and what concerns all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..backends import Backend, resolve_backend
from ..backends.interrupts import HeldSignals
from ..groups.constraints import joint_set
from ..groups.hyperparameters import Hyperparameters
from ..layout.slot import Kind, Slot
from ..memory.overlap import check_overlap, may_overlap
from .edited_groups import check_capturable
from .flat_gradients import FlatGradients
from .group_turns import GroupTurns
from .launch_unit import LaunchUnit
from .placement import merged


def choose_backends(
    slots: Mapping[Kind, list[Slot]],
    groups: list[dict[str, Any]],
    requested: str | Backend,
    reported: set[Any],
) -> dict[Kind, Backend]:
    """Return the backend of each kind of slot.

    Args:
        requested: by name, "auto", or a backend.
        reported: of what users were told.

    Raises:
        ValueError, RuntimeError: it cannot step these parameters, or not as their groups ask.
    """
    backends = {
        kind: resolve_backend(requested, kind, of_kind[0].name, reported)
        for kind, of_kind in slots.items()
    }
    for kind, backend in backends.items():
        check_capturable(slots[kind], groups, backend)
    return backends


def make_units(
    slots: Mapping[Kind, list[Slot]],
    backends: Mapping[Kind, Backend],
    groups: list[dict[str, Any]],
    state: Mapping[Tensor, dict[str, Any]],
    hyperparameters: Hyperparameters,
    turns_of_groups: GroupTurns,
    packs_state: bool,
    in_parts: bool,
) -> list[LaunchUnit]:
    """Return one unit for each table: of a device and backend, and of a dtype where that takes one at a time.

    Args:
        packs_state: put small state into arenas.
        in_parts: all tables but those of joint sets may be updated in parts; those have tables of their own.
    """
    tables: dict[Any, list[list[Slot]]] = defaultdict(list)
    backend_of: dict[Any, tuple[Backend, bool]] = {}
    for kind, backend in backends.items():
        parted = _by_parts(slots[kind], groups) if in_parts else {False: slots[kind]}
        for takes_parts, of_kind in parted.items():
            mixed = (kind.device, backend.name) if backend.mixes_dtypes else kind
            tables[mixed, takes_parts].append(of_kind)
            backend_of[mixed, takes_parts] = backend, takes_parts
    return [
        LaunchUnit(
            merged(of_table),
            hyperparameters,
            backend_of[key][0],
            state,
            turns_of_groups,
            packs_state,
            backend_of[key][1],
        )
        for key, of_table in tables.items()
    ]


def _by_parts(slots: list[Slot], groups: list[dict[str, Any]]) -> dict[bool, list[Slot]]:
    """Slots that may be updated in parts and those that may not, where there are any."""
    parted: dict[bool, list[Slot]] = defaultdict(list)
    for slot in slots:
        parted[joint_set(groups[slot.group]) is None].append(slot)
    return parted


def attach_flat(units: Sequence[LaunchUnit], flat: dict[Any, FlatGradients]) -> None:
    """Have gradients lie in buffers: those of the engine before where tables are the same, else new ones.

    Args:
        flat: the buffers of the engine before, by key; then those of these units.
    """
    keys = [FlatGradients.key_of(unit.table) for unit in units]
    found = {
        key: flat.get(key) or FlatGradients(unit.table)
        for key, unit in zip(keys, units, strict=True)
    }
    for old in flat.values():
        old.let_go()
    with HeldSignals():  # or the next engine would have other buffers
        flat.clear()
        flat.update(found)
    for unit, buffers in zip(units, found.values(), strict=True):
        unit.flat = buffers
        buffers.attach(unit.table, unit.table.spans[None], keep=True)


def refuse_overlap(units: Sequence[LaunchUnit]) -> None:
    """Raise for parameters or state that somebody put into the memory of others: all are updated side by side.

    Raises:
        ValueError: it names them.
    """
    places = [unit.places() for unit in units]
    devices = [str(unit.table.device) for unit in units]
    for device in set(devices):
        here = [place for place, name in zip(places, devices, strict=True) if name == device]
        if may_overlap(np.concatenate(here)):
            params = ((s.name, s.param) for unit in units for s in unit.table.slots)
            check_overlap(params, (held for unit in units for held in unit.held_state()))
            break
    for unit in units:
        unit.gradients.has_rebound = False
