"""Edits of param groups that their parameters, state or table do not go with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ..backends import Backend
from ..groups.constraints import joint_set
from ..groups.hyperparameters import Hyperparameters
from ..groups.param_groups import param_label
from ..layout.joint_set_checks import check_joint_sets
from ..layout.slot import Kind, Slot
from ..layout.table import RebuildNeeded
from .launch_unit import LaunchUnit
from .placement import collect_slots


def check_capturable(slots: list[Slot], groups: list[dict[str, Any]], backend: Backend) -> None:
    """Raise ValueError for parameters on a GPU that cannot be stepped in a CUDA graph though they are to be."""
    if backend.counts_on_device or slots[0].local.device.type != "cuda":
        return
    for slot in slots:
        if groups[slot.group].get("capturable"):
            raise ValueError(
                f"{slot.name}: capturable=True needs the cuda or the triton backend, not {backend.name}"
            )


class EditedGroups:
    """Refuses edits, or has the engine built again for them.

    Args:
        units: all of the optimizer's.
        groups: its param groups.
        state: its state.
        hyperparameters: of the groups.
        in_parts: see `Engine`.
    """

    def __init__(
        self,
        units: Sequence[LaunchUnit],
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        hyperparameters: Hyperparameters,
        in_parts: bool,
    ) -> None:
        self._units, self._groups, self._state = units, groups, state
        self._hyperparameters, self._in_parts = hyperparameters, in_parts

    def refuse(self, changed: list[int]) -> None:
        """Raise for groups whose hyperparameters go together, but not with their parameters, state or table."""
        hyperparameters, groups = self._hyperparameters, self._groups
        if hyperparameters.changed_roles(changed):
            raise RebuildNeeded("a param group changed its role")
        if hyperparameters.changed_storage(changed):
            raise RebuildNeeded("a param group is to be stored in another way")
        if self._in_parts and self._moves_whole(changed):
            raise RebuildNeeded("a param group got or lost a constraint that its elements share")
        for unit in self._units:
            unit.refuse_rates(changed)
            unit.refuse_edits_in_capture(changed)
            check_capturable(unit.table.slots, groups, unit.backend)
        if any(joint_set(groups[index]) is not None for index in changed):
            slots = collect_slots(groups)
            check_joint_sets(slots, groups)
            if not self._can_update(slots):
                raise RebuildNeeded("a constraint needs another backend")
        # from Adam to SGD or back with the state of the other
        for index in hyperparameters.changed_families(changed):
            group = groups[index]
            for position, param in enumerate(group["params"]):
                if self._state.get(param):
                    raise ValueError(
                        f"{param_label(index, group, position)}: its state is not that of rule {group['rule']!r}; "
                        "for a change between Adam and SGD, remove it from the optimizer's state first"
                    )

    def _moves_whole(self, changed: list[int]) -> bool:
        """Tell whether parameters of one of these groups are in a table of the other sort, see `takes_parts`."""
        shared = {index: joint_set(self._groups[index]) is not None for index in changed}
        return any(
            shared.get(slot.group) is unit.takes_parts
            for unit in self._units
            for slot in unit.table.slots
        )

    def _can_update(self, slots: dict[Kind, list[Slot]]) -> bool:
        """Tell whether the backend of each parameter's table can update it as its group is now."""
        kinds = {id(slot.param): kind for kind, of_kind in slots.items() for slot in of_kind}
        return not any(
            unit.backend.refusal(kinds[id(slot.param)])
            for unit in self._units
            for slot in unit.table.slots
        )
