"""Frozen parameters, and those of lazy modules: most belong to no table, until they are trained or have a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..backends import Backend, can_update
from ..groups.hyperparameters import turn_of
from ..groups.param_groups import ROLES
from ..layout.slot import Kind, Slot
from ..layout.table import RebuildNeeded
from ..memory.presence import is_uninitialized
from .placement import is_trained, misfit


class FrozenParameters:
    """The parameters that an engine leaves out, and those that it could not step.

    Args:
        slots: by kind, all parameters.
        groups: param groups.
        state: the optimizer's state.
        requested: backend by name, "auto", or a backend.

    Attributes:
        updated: the slots of the kinds that the engine updates.
        is_any: there is something to check.
    """

    def __init__(
        self,
        slots: dict[Kind, list[Slot]],
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        requested: str | Backend,
    ) -> None:
        self._groups, self._state = groups, state
        # a frozen base model in another dtype needs no backend that can update it, until it shows a gradient
        kinds = [
            kind
            for kind, of_kind in slots.items()
            if any(map(is_trained, of_kind))
            # what was frozen while its group waits goes on to wait with it
            or (any(map(self._has_waited, of_kind)) and can_update(requested, kind))
        ]
        kinds = kinds or [kind for kind in slots if kind.has_memory]
        self.updated = {kind: slots[kind] for kind in kinds}
        left_out = {kind: of_kind for kind, of_kind in slots.items() if kind not in self.updated}
        self._left_out = {
            role: [
                s.param for of_kind in left_out.values() for s in of_kind if role in (None, s.role)
            ]
            for role in (None, *ROLES)
        }
        self._may_wait = [
            slot
            for kind, of_kind in left_out.items()
            if can_update(requested, kind)
            for slot in of_kind
        ]
        self.note_turns()
        self._unfit = [
            slot
            for of_kind in slots.values()
            for slot in of_kind
            if not is_trained(slot) and misfit(slot, groups)
        ]
        self._uninitialized = [p for g in groups for p in g["params"] if is_uninitialized(p)]
        self.is_any = bool(left_out or self._unfit or self._uninitialized)

    def _has_waited(self, slot: Slot) -> bool:
        return "waited" in (self._state.get(slot.param) or {})

    def note_turns(self) -> None:
        """Note the parameters that belong to no table, but to groups that count the steps on which they wait."""
        may_wait = ((slot.param, self._groups[slot.group]) for slot in self._may_wait)
        self._sleeping = [param for param, group in may_wait if turn_of(group)[0] > 1]

    def check(self) -> None:
        """Raise RebuildNeeded for a parameter that is trained now or has a shape, ValueError for one that cannot be."""
        for slot in self._unfit:
            if slot.param.grad is not None:
                raise ValueError(misfit(slot, self._groups))
        for param in self._left_out[None]:
            if param.grad is not None:
                raise RebuildNeeded("a parameter that was frozen has a gradient")
        for param in self._sleeping:
            if param.requires_grad:
                raise RebuildNeeded("a parameter that was frozen waits with its group")
        if self._have_shapes():
            raise RebuildNeeded("a lazy module has seen its first input")

    def are_trained(self) -> bool:
        """Tell whether any parameter that was left out is trained now, or has a shape."""
        if self._have_shapes():
            return True
        return any(p.requires_grad or p.grad is not None for p in self._left_out[None])

    def _have_shapes(self) -> bool:
        """Tell whether a lazy module saw its first input, which gave its parameters their shapes."""
        return not all(map(is_uninitialized, self._uninitialized))

    def drop_gradients(self, role: str | None) -> None:
        """Set the gradients of a role, or all, to None."""
        for param in self._left_out[role]:
            param.grad = None
