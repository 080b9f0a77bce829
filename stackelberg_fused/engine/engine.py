"""From param groups to launches.

The engine builds one table per device (and per dtype, for a backend that takes one dtype at a time) and steps each in
one launch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ..backends import Backend
from ..backends.interrupts import HeldSignals, make_calls
from ..groups.hyperparameters import Hyperparameters
from ..groups.param_groups import ROLES
from ..layout.joint_set_checks import check_joint_sets
from ..layout.scaling import Scaling
from ..layout.statistics import NOBODY, ClipLimits, Launched
from ..layout.table import RebuildNeeded
from .across_rebuilds import AcrossRebuilds
from .attachment import Attachment
from .clear_gradients import clear_gradients
from .edit_detector import EditDetector
from .edited_groups import EditedGroups
from .flat_gradients import refuse_unflattened
from .frozen import FrozenParameters
from .group_turns import NO_TURN, GroupTurns, unfitting_rounds
from .infinities import Infinities
from .launch_unit import Pending, Staged
from .launch_units import attach_flat, choose_backends, make_units, refuse_overlap
from .norms import Norms
from .placement import (
    Placement,
    collect_slots,
    merged,
    report_long_vectors,
)
from .rank_agreement import refuse_different_ranks_once
from .replaced_params import ReplacedParameters
from .sharded_balls import ShardedBalls, has_sharded_ball
from .state_requests import StateRequests

# by the role of a step: the others
LEFT_OUT: dict[str | None, frozenset[str]] = {
    None: NOBODY,
    **{role: frozenset(ROLES) - {role} for role in ROLES},
}


class Engine:
    """Every launch unit of an optimizer.

    It allocates all that it needs when it is made, and takes over the state by `attach`.

    Args:
        groups: checked param groups.
        state: the optimizer's state.
        requested: backend by name, "auto", or a backend.
        flatten: move parameters, and put small state, into arenas.
        flat_grads: keep gradients in flat buffers.
        across_rebuilds: what the engine before this one left.
        previous: state before a state dict was loaded, see `Attachment`.
        in_parts: steps may be taken in parts (`parts.py`), of all tables but those of joint sets, which have theirs.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        requested: str | Backend,
        flatten: bool,
        flat_grads: bool,
        across_rebuilds: AcrossRebuilds,
        previous: Mapping[Tensor, dict[str, Any]] | None = None,
        in_parts: bool = False,
    ) -> None:
        self.groups = groups
        self.state = state
        # until it is attached; later: it accepted hyperparameters that not all of its units follow
        self.is_broken = True
        collected = collect_slots(groups)
        check_joint_sets(collected, groups)
        self._frozen = FrozenParameters(collected, groups, state, requested)
        slots = self._frozen.updated
        report_long_vectors(merged(slots.values()), across_rebuilds.reported)
        backends = choose_backends(slots, groups, requested, across_rebuilds.reported)
        if flat_grads:
            refuse_unflattened(slot for of_kind in slots.values() for slot in of_kind)
        self._placement = Placement(flatten, across_rebuilds.placed)
        for of_kind in slots.values():
            self._placement.place(of_kind)
        self.hyperparameters = Hyperparameters(groups, across_rebuilds.turns)
        turns_of_groups = GroupTurns(len(groups))
        self.units = make_units(
            slots,
            backends,
            groups,
            state,
            self.hyperparameters,
            turns_of_groups,
            packs_state=flatten,
            in_parts=in_parts,
        )
        self._norms = Norms(self.units, groups, across_rebuilds)
        self._edited_groups = EditedGroups(
            self.units, groups, state, self.hyperparameters, in_parts
        )
        if flat_grads:
            attach_flat(self.units, across_rebuilds.flat)
        own = across_rebuilds.own_counts()
        self._attachments = [
            Attachment(unit.table, state, previous, own, flat_grads) for unit in self.units
        ]
        self._turns_of_groups, self._across_rebuilds = turns_of_groups, across_rebuilds
        self._watch = across_rebuilds.watch
        self._watch.follow(groups)
        self._replaced = ReplacedParameters(groups)
        self._infinities = Infinities(self.units)
        self.balls: ShardedBalls | None = None  # until hyperparameters are accepted
        # warnings may be errors: before anything is modified
        self._look_at_rates(list(range(len(groups))), is_step=False)

    def attach(self, also: Iterable[partial[Any]]) -> None:
        """Take over the optimizer's state.

        Args:
            also: calls of built-in functions; no interrupt comes between the state's change and these.
        """
        attachments, tables = self._attachments, [unit.table for unit in self.units]
        calls = [call for attachment in attachments for call in attachment.connect()]
        # before there are counts of parameters that have not waited yet
        self._turns_of_groups.connect(tables)
        anew = {id(self.groups[index]): NO_TURN for index in unfitting_rounds(tables, self.groups)}
        calls.append(partial(self._across_rebuilds.turns.update, anew))
        for attachment, unit in zip(attachments, self.units, strict=True):
            calls += attachment.connect_new()
            unit.note_early(attachment.without)
        # or the next engine would take counts of tables that nobody knows for the user's
        calls += self._across_rebuilds.notes_of(tables)
        make_calls([*calls, *also])
        self._attachments = []
        self._edits = EditDetector(self.groups, self.state, self.hyperparameters, self.units)
        self.requests = StateRequests(self.groups, self.state, self._across_rebuilds)
        self.is_broken = False

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
        checks_all: bool = False,
    ) -> Launched | None:
        """Update the parameters of a role, or all; returns the launches made and, with limits, the statistics.

        None: it was no step of training, see `StateRequests`.

        Args:
            role: "body", "head" or None for both.
            limits: what gradients are clipped to.
            scaling: what a gradient scaler says.
            zero_grad: clear these gradients.
            checks_all: raise for gradients of the other role too.

        Raises before anything is modified; `RebuildNeeded` where the engine has to be built again.
        """
        self._edits.check()
        changed = self.hyperparameters.check()
        if changed:
            self._edited_groups.refuse(changed)
        if checks_all and role is not None:
            self._prepare(None)
        pending = self._prepare(role)
        if self._replaced.is_new:
            self._replaced.refuse_marked()
        search = None if scaling is None else scaling.search
        is_measured = limits is not None or search is not None
        if is_measured:
            self._norms.prepare(limits)
        requests = self.requests
        may_be_request = (requests.without_state or requests.asks_ranks) and not zero_grad
        if may_be_request and scaling is None and self._is_request(role, limits, changed):
            for unit, read in zip(self.units, pending, strict=True):
                unit.make_state(read)
            self._edits.note_state()
            return None
        self._look_at_rates(changed, is_step=role != "head")  # a warning may be an error
        if changed:
            self._accept(changed)
        if self.balls is not None:
            self.balls.prepare(limits, scaling, role)
        staged = self._stage(pending, is_measured, scaling, zero_grad)
        if not any(staged):
            self._replaced.refuse_orphans()
        launches, statistics = 0, None
        if is_measured and self.units:
            launches, statistics = self._norms.measure(staged, limits or ClipLimits.none(), role)
        if search is not None:
            staged = self._infinities.agree(staged, search, statistics)
        launches += self.launch(staged) if self.balls is None else self.balls.launch(staged, role)
        for unit in self.units:
            if unit.has_new_state:
                self._edits.note_state()  # and all units have none
        if zero_grad:
            for unit, read, ready in zip(self.units, pending, staged, strict=True):
                clear_gradients(unit, read, ready)
        if limits is None:
            return launches, None, NOBODY
        return launches, statistics, self._resting(staged, role)

    def _resting(self, staged: list[Staged | None], role: str | None) -> frozenset[str]:
        """The roles that had no part in a step: those that it left out, and those that wait for their turn."""
        left_out = LEFT_OUT[role]
        plans = [ready.plan for ready in staged if ready is not None]
        if not any(plan.resting for plan in plans):
            return left_out
        playing = NOBODY.union(*(plan.playing for plan in plans)) - left_out
        return left_out.union(*(plan.resting for plan in plans)) - playing

    def _is_request(self, role: str | None, limits: ClipLimits | None, changed: list[int]) -> bool:
        """Tell whether a step only asks for state, see `StateRequests`."""
        requests = self.requests
        if requests.asks_ranks and self._waits_for_ranks(limits, changed):
            # or those that differ would wait for each other
            options = {"max_grad_norm": limits}
            refuse_different_ranks_once(self.groups, options, self._across_rebuilds)
            return requests.is_one_on_all(role)
        return requests.without_state and requests.is_one(role)

    def _waits_for_ranks(self, limits: ClipLimits | None, changed: list[int]) -> bool:
        """Tell whether ranks wait for each other in the coming step."""
        if limits is not None or self.balls is not None:
            return True
        return bool(changed) and has_sharded_ball(self.groups)

    def begin(self) -> None:
        """Accept edited hyperparameters and bring tables to the coming step, which is then taken in parts (`parts.py`).

        Raises as `step`.
        """
        self._edits.check()
        changed = self.hyperparameters.check()
        if changed:
            self._edited_groups.refuse(changed)
        if self._frozen.is_any:
            self._frozen.check()
        self._look_at_rates(changed)
        if changed:
            self._accept(changed)
        for unit in self.units:
            if unit.takes_parts:
                unit.begin()

    def check(self, role: str) -> None:
        """Raise for gradients of a role that do not fit."""
        self._prepare(role)

    def note_new_state(self) -> None:
        """Take state that a step has allocated for what the state should hold."""
        if any(unit.has_new_state for unit in self.units):
            self._edits.note_state()

    def _prepare(self, role: str | None) -> list[Pending]:
        """Have every unit read and check its gradients; all errors are raised here, before anything is modified."""
        if self._frozen.is_any:
            self._frozen.check()
        pending = [unit.prepare(role) for unit in self.units]
        if self._placement.has_frozen and self._placement.place_late():
            pending = [unit.prepare(role) for unit in self.units]
        for unit in self.units:
            if unit.gradients.has_rebound:
                self.refuse_overlap()  # of all units
        return pending

    def refuse_overlap(self) -> None:
        """Raise for parameters or state that somebody put into the memory of others: all are updated side by side."""
        refuse_overlap(self.units)

    def _accept(self, changed: list[int]) -> None:
        """Go on with hyperparameters that somebody changed and that nothing speaks against."""
        self.is_broken = True  # should memory run out, or an interrupt come: then it is built again
        accepted = self.hyperparameters.accept(changed)
        for unit in self.units:
            unit.follow(accepted)
        self._frozen.note_turns()
        self.balls = ShardedBalls.of(
            self.units, self.groups, self._across_rebuilds, before=self.balls
        )
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

    def launch(self, staged: list[Staged | None]) -> int:
        """Make the launches of a step, whose number is returned; an interrupt comes before the first or after the last.

        An error may still come between the launches of several units: it is none that they could be prepared for.
        """
        if len(self.units) == 1 and self.units[0].backend.is_native:
            return 0 if staged[0] is None else self.units[0].launch(staged[0])
        with HeldSignals():
            return sum(
                unit.launch(ready)
                for unit, ready in zip(self.units, staged, strict=True)
                if ready is not None
            )

    def flat_gradients(self) -> list[dict[str, Tensor]]:
        """The buffers of each table by role, with all gradients in them."""
        found = [(unit, unit.flat) for unit in self.units if unit.flat is not None]
        for unit, flat in found:
            flat.attach(unit.table, unit.table.spans[None], keep=True)
        return [buffers for _, flat in found for buffers in flat.by_dtype()]

    def zero_flat(self, role: str | None) -> None:
        """Clear the gradients of a role, or all: flat ones in a few operations, others to None."""
        self._frozen.drop_gradients(role)
        for unit in self.units:
            if unit.flat is not None:
                unit.flat.zero(unit.table, role)

    def was_edited(self) -> bool:
        """Tell whether parameters of the groups, or their state, were replaced since the last step."""
        try:
            self._edits.check()
        except RebuildNeeded:
            return True
        every = range(len(self.groups))
        if self.hyperparameters.changed_roles(every) or self.hyperparameters.changed_storage(every):
            return True
        return self._frozen.are_trained()

    def _look_at_rates(self, changed: list[int], is_step: bool = True) -> None:
        """Warn of rates that make no two-time-scale game, some of them of groups that are not accepted yet."""
        rates = self.hyperparameters.new_rates(changed)
        if rates is not None:
            body, head = self.hyperparameters.players
            self._watch.look(rates, body, head, self.groups, is_step)
        elif self._watch.together is not None and is_step:
            self._watch.look_again(self.groups)
