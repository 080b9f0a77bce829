"""From param groups to launches.

The engine builds one table per device (and per dtype, for a backend that takes one dtype at a time) and steps each in
one launch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..backends import Backend, resolve_backend
from ..groups.constraints import joint_set
from ..groups.hyperparameters import Hyperparameters
from ..groups.param_groups import ROLES, param_label
from ..layout.joint_sets import check_joint_sets
from ..layout.scaling import Scaling
from ..layout.slot import Kind, Slot
from ..layout.statistics import ClipLimits, Statistics, combine
from ..layout.table import RebuildNeeded
from ..native.change_detection import make_change_detector, make_container_snapshot
from .across_rebuilds import AcrossRebuilds
from .clear_gradients import clear_gradients
from .flat_gradients import FlatGradients, refuse_shards
from .launch_unit import LaunchUnit, Pending, Staged
from .placement import (
    Placement,
    collect_slots,
    is_trained,
    merged,
    misfit,
)
from .state import attach_state, is_attached


def _check_capturable(slots: list[Slot], groups: list[dict[str, Any]], backend: Backend) -> None:
    """Raise ValueError for parameters on a GPU that cannot be stepped in a CUDA graph though they are to be."""
    if backend.counts_on_device or slots[0].local.device.type != "cuda":
        return
    for slot in slots:
        if groups[slot.group].get("capturable"):
            raise ValueError(
                f"{slot.name}: capturable=True needs the cuda or the triton backend, not {backend.name}"
            )


class Engine:
    """Every launch unit of an optimizer.

    Args:
        groups: checked param groups.
        state: the optimizer's state.
        choice: backend by name, "auto", or a backend.
        flatten: move parameters into arenas.
        flat_grads: keep gradients in flat buffers.
        across_rebuilds: what the engine before this one left.
        previous: state before a state dict was loaded, see `attach_state`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        choice: str | Backend,
        flatten: bool,
        flat_grads: bool,
        across_rebuilds: AcrossRebuilds,
        previous: Mapping[Tensor, dict[str, Any]] | None = None,
    ) -> None:
        self.groups = groups
        self.state = state
        self.is_broken = False  # accepted hyperparameters that not all of its units follow
        slots = collect_slots(groups)
        check_joint_sets(slots, groups)
        # a frozen base model in another dtype needs no backend that can update it, until it shows a gradient
        updated = [key for key in slots if any(map(is_trained, slots[key]))] or list(slots)
        frozen = [slot for key in slots if key not in updated for slot in slots[key]]
        self._frozen = {
            role: [slot.param for slot in frozen if role in (None, slot.role)]
            for role in (None, *ROLES)
        }
        every = [slot for key in slots for slot in slots[key]]
        self._unfit = [slot for slot in every if not is_trained(slot) and misfit(slot, groups)]
        slots = {key: slots[key] for key in updated}
        backends = {
            key: resolve_backend(choice, key, slots[key][0].name, across_rebuilds.reported)
            for key in slots
        }
        for key, backend in backends.items():
            _check_capturable(slots[key], groups, backend)
        if flat_grads:
            refuse_shards(slot for key_slots in slots.values() for slot in key_slots)
        self._placement = Placement(flatten, across_rebuilds.placed)
        for key_slots in slots.values():
            self._placement.place(key_slots)
        self.hyperparameters = Hyperparameters(groups, across_rebuilds.turns)
        tables: dict[Any, list[Kind]] = defaultdict(list)
        for kind, backend in backends.items():
            tables[(kind.device, backend.name) if backend.mixes_dtypes else kind].append(kind)
        self.units = [
            LaunchUnit(
                merged(slots[k] for k in kinds), self.hyperparameters, backends[kinds[0]], state
            )
            for kinds in tables.values()
        ]
        if flat_grads:
            self._attach_flat(across_rebuilds.flat)
        for unit in self.units:
            attach_state(unit.table, state, previous)
            if flat_grads:
                # all of them are stepped, and tools that look for state have no other way to it
                unit.allocate_trained()
        self._params = [group["params"] for group in groups]
        lists = [p if isinstance(p, list) else list(p) for p in self._params]
        self._group_snapshot = make_container_snapshot(
            [groups if isinstance(groups, list) else [*groups], *lists]
        )
        self._note_state()
        self._watch = across_rebuilds.watch
        self._look_at_rates(list(range(len(groups))))

    def _attach_flat(self, flat: dict[Any, FlatGradients]) -> None:
        """Have gradients lie in buffers: those of the engine before where tables are the same, else new ones."""
        keys = [FlatGradients.key_of(unit.table) for unit in self.units]
        found = {
            key: flat.get(key) or FlatGradients(unit.table)
            for key, unit in zip(keys, self.units, strict=True)
        }
        for old in flat.values():
            old.let_go()
        flat.clear()
        flat.update(found)
        for unit, buffers in zip(self.units, found.values(), strict=True):
            unit.flat = buffers
            buffers.attach(unit.table, unit.table.spans[None], keep=True)

    @property
    def backend(self) -> str:
        """Names of the backends in use, joined by "+"."""
        return "+".join(dict.fromkeys(unit.backend.name for unit in self.units)) or "none"

    def step(
        self,
        role: str | None,
        limits: ClipLimits | None = None,
        scaling: Scaling | None = None,
        zero_grad: bool = False,
    ) -> tuple[int, Statistics | None]:
        """Update the parameters of a role, or all; returns the launches made and, with limits, the statistics.

        Args:
            role: "body", "head" or None for both.
            limits: what gradients are clipped to.
            scaling: what a gradient scaler says.
            zero_grad: clear these gradients.

        Raises before anything is modified; `RebuildNeeded` where the engine has to be built again.
        """
        self._look_at_edits()
        changed = self.hyperparameters.check()
        if changed:
            self._refuse(changed)
        pending = self._prepare(role, limits is not None)
        self._look_at_rates(changed)  # a warning may be an error
        if changed:
            self._accept(changed)
        staged = self._stage(pending, limits is not None, scaling, zero_grad)
        launches, statistics, has_new_state = 0, None, False
        if limits is not None and self.units:
            launches, statistics = self._measure(staged, limits, role)
        for unit, ready in zip(self.units, staged, strict=True):
            if ready is not None:
                launches += unit.launch(ready)
            has_new_state |= unit.has_new_state
        if has_new_state:
            self._note_state()
        if zero_grad:
            for unit, read, ready in zip(self.units, pending, staged, strict=True):
                clear_gradients(unit, read, ready)
        return launches, statistics

    def _prepare(self, role: str | None, clipped: bool) -> list[Pending]:
        """Have every unit read and check its gradients; all errors are raised here, before anything is modified."""
        for slot in self._unfit:
            if slot.param.grad is not None:
                raise ValueError(misfit(slot, self.groups))
        for param in self._frozen[None]:
            if param.grad is not None:
                raise RebuildNeeded("a parameter that was frozen has a gradient")
        if clipped:
            for unit in self.units:
                unit.refuse_shards()
        pending = [unit.prepare(role) for unit in self.units]
        if self._placement.has_frozen and self._placement.place_late():
            pending = [unit.prepare(role) for unit in self.units]
        return pending

    def _accept(self, changed: list[int]) -> None:
        """Go on with hyperparameters that somebody changed and that nothing speaks against."""
        accepted = self.hyperparameters.accept(changed)
        self.is_broken = True  # should memory run out: then it is built again
        for unit in self.units:
            unit.follow(accepted)
        self.is_broken = False

    def _stage(
        self, pending: list[Pending], clipped: bool, scaling: Scaling | None, zero_grad: bool
    ) -> list[Staged | None]:
        """Prepare the launch of each unit; None for a unit that launches nothing."""
        # a group may have parameters in several tables, which have to wait alike
        if len(self.units) == 1:
            return [self.units[0].stage(pending[0], clipped, scaling, zero_grad)]
        counted = any(
            unit.gradients.active[read.span.first_slot : read.span.last_slot].any()
            for unit, read in zip(self.units, pending, strict=True)
        )
        return [
            unit.stage(read, clipped, scaling, zero_grad, counted)
            for unit, read in zip(self.units, pending, strict=True)
        ]

    def flat_gradients(self) -> list[dict[str, Tensor]]:
        """The buffers of each table by role, with all gradients in them."""
        found = [(unit, unit.flat) for unit in self.units if unit.flat is not None]
        for unit, flat in found:
            flat.attach(unit.table, unit.table.spans[None], keep=True)
        return [buffers for _, flat in found for buffers in flat.by_dtype()]

    def zero_flat(self, role: str | None) -> None:
        """Clear the gradients of a role, or all: flat ones in a few operations, others to None."""
        for param in self._frozen[role]:
            param.grad = None
        for unit in self.units:
            if unit.flat is not None:
                unit.flat.zero(unit.table, role)

    def _measure(
        self, staged: list[Staged | None], limits: ClipLimits, role: str | None
    ) -> tuple[int, Statistics]:
        """Statistics of the gradients about to be stepped; the launches made, and those of one of the units."""
        if any(unit.skipped for unit in self.units):
            table = self.units[0].table
            statistics = table.statistics_of(table.spans[role])
            statistics.unknown(limits)
            return 0, statistics
        running = [(unit, ready) for unit, ready in zip(self.units, staged, strict=True) if ready]
        launches = sum(unit.measure(ready, limits) for unit, ready in running)
        parts = [ready.launch.statistics for _, ready in running]
        if not parts:
            table = self.units[0].table
            parts = [table.statistics_of(table.spans[role])]
        if len(parts) > 1:
            combine(parts, limits)
        elif not running:
            parts[0].nothing(limits)
        return launches, parts[0]

    def was_edited(self) -> bool:
        """Tell whether parameters of the groups, or their state, were replaced since the last step."""
        try:
            self._look_at_edits()
        except RebuildNeeded:
            return True
        every = range(len(self.groups))
        if self.hyperparameters.changed_roles(every) or self.hyperparameters.changed_storage(every):
            return True
        return any(p.requires_grad or p.grad is not None for p in self._frozen[None])

    def _look_at_edits(self) -> None:
        """Have groups looked at that hold anything else than the last time.

        Raises:
            RebuildNeeded: a parameter or its state was replaced.
        """
        if not self._change_detector.is_unchanged():
            self._look_closer()
        for unit in self.units:
            if unit.flat is not None and unit.flat.is_outdated():
                raise RebuildNeeded("a parameter was frozen or unfrozen")

    def _look_closer(self) -> None:
        """Find what the change detector noticed, and note it or ask for a rebuild."""
        if self._group_snapshot.changed():
            raise RebuildNeeded("parameters were replaced")
        for i in self.hyperparameters.look():
            if self.groups[i].get("params") is not self._params[i]:
                raise RebuildNeeded("parameters were replaced")
        if self._state_snapshot.changed():
            if not all(is_attached(unit.table, self.state) for unit in self.units):
                raise RebuildNeeded("state was replaced")
            self._note_state()  # entries that no rule knows
        if any(unit.state_addresses.moved() for unit in self.units):
            raise RebuildNeeded("state was moved")

    def _refuse(self, changed: list[int]) -> None:
        """Raise for groups whose hyperparameters go together, but not with their parameters, state or table."""
        if self.hyperparameters.changed_roles(changed):
            raise RebuildNeeded("a param group changed its role")
        if self.hyperparameters.changed_storage(changed):
            raise RebuildNeeded("a param group is to be stored in another way")
        for unit in self.units:
            unit.refuse_rates(changed)
            unit.refuse_edits_in_capture(changed)
            _check_capturable(unit.table.slots, self.groups, unit.backend)
        if any(joint_set(self.groups[index]) is not None for index in changed):
            check_joint_sets(collect_slots(self.groups), self.groups)
        # from Adam to SGD or back with the state of the other
        for index in self.hyperparameters.changed_families(changed):
            group = self.groups[index]
            for position, param in enumerate(group["params"]):
                if self.state.get(param):
                    raise ValueError(
                        f"{param_label(index, group, position)}: its state is not that of rule {group['rule']!r}; "
                        "for a change between Adam and SGD, remove it from the optimizer's state first"
                    )

    def _look_at_rates(self, changed: list[int]) -> None:
        """Warn of rates that make no two-time-scale game, some of them of groups that are not accepted yet."""
        rates = self.hyperparameters.new_rates(changed)
        if rates is not None:
            self._watch.look(*rates)

    def _note_state(self) -> None:
        """Take what the state holds now for what it should hold."""
        entries = [entry for entry in self.state.values() if isinstance(entry, dict)]
        self._state_snapshot = make_container_snapshot([self.state, *entries])
        for unit in self.units:
            unit.note_state()
        watches = [self._group_snapshot, self.hyperparameters.watch, self._state_snapshot]
        self._change_detector = make_change_detector(
            watches, [unit.state_addresses for unit in self.units]
        )
