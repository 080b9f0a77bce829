"""Detection of edits between steps: replaced parameters, groups and state, and state whose memory was exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..groups.hyperparameters import Hyperparameters
from ..layout.table import RebuildNeeded
from ..native.change_detection import make_change_detector, make_container_snapshot
from .launch_unit import LaunchUnit
from .state import is_attached


class EditDetector:
    """Compares groups and state with what they held at the last step; nearly always one native call.

    Args:
        groups: the optimizer's param groups.
        state: the optimizer's state.
        hyperparameters: of the groups; told which groups to look at again.
        units: the tables that are connected to the state.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        hyperparameters: Hyperparameters,
        units: list[LaunchUnit],
    ) -> None:
        self._groups, self._state = groups, state
        self._hyperparameters, self._units = hyperparameters, units
        self._params = [group["params"] for group in groups]
        lists = [p if isinstance(p, list) else list(p) for p in self._params]
        self._group_snapshot = make_container_snapshot(
            [groups if isinstance(groups, list) else [*groups], *lists]
        )
        self.note_state()

    def note_state(self) -> None:
        """Take what the state holds now for what it should hold."""
        self._is_noted = False
        entries = [entry for entry in self._state.values() if isinstance(entry, dict)]
        self._state_snapshot = make_container_snapshot([self._state, *entries])
        for unit in self._units:
            unit.note_state()
        self._change_detector = make_change_detector(
            [self._group_snapshot, self._hyperparameters.snapshot, self._state_snapshot],
            [unit.state_addresses for unit in self._units],
        )
        self._is_noted = True

    def check(self) -> None:
        """Have edited hyperparameters looked at again.

        Raises:
            RebuildNeeded: a parameter or its state was replaced or moved, or flat gradients are out of date.
        """
        if not self._is_noted:
            raise RebuildNeeded("an interrupt came while the state was noted")
        if not self._change_detector.is_unchanged():
            self._look_closer()
        for unit in self._units:
            if unit.flat is not None and unit.flat.is_outdated():
                raise RebuildNeeded("a parameter was frozen or unfrozen")

    def _look_closer(self) -> None:
        """Find what the change detector noticed, and note it or ask for a rebuild."""
        if self._group_snapshot.changed():
            raise RebuildNeeded("parameters were replaced")
        for i in self._hyperparameters.look():
            if self._groups[i].get("params") is not self._params[i]:
                raise RebuildNeeded("parameters were replaced")
        if self._state_snapshot.changed():
            if not all(is_attached(unit.table, self._state) for unit in self._units):
                raise RebuildNeeded("state was replaced")
            self.note_state()  # entries that no rule knows
        if any(unit.state_addresses.moved() for unit in self._units):
            raise RebuildNeeded("state was moved")
