"""One table with the backend that updates it: a step is read and checked first, and launched then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ..backends import Backend, Launch
from ..backends.device_tables import follow_current_stream
from ..groups.hyperparameters import Accepted, Hyperparameters
from ..groups.param_groups import group_label
from ..groups.rules import Rule
from ..layout.part import Part
from ..layout.scaling import Scaling
from ..layout.slot import Slot, Span
from ..layout.statistics import ClipLimits
from ..layout.table import COUNTS, Table
from ..memory.overlap import place_of
from ..memory.presence import is_abstract
from ..memory.sharding import local_tensor
from ..native.change_detection import make_address_snapshot
from ..native.tensor_abi import increment_versions
from ..warning import warn_caller
from .device_counting import count_on_device, refuse_given_counts, refuse_in_capture
from .flat_gradients import FlatGradients
from .given_counts import advances_of_given, read_given
from .gradients import Gathered, Gradients
from .group_turns import GroupTurns, begin_anew
from .momentum import note_momentum
from .state import drop_averages
from .step_plan import StepPlan, StepPlanner

_CPU = torch.device("cpu")


@dataclass(slots=True)
class Pending:
    """The gradients of one table, read and checked before anything is modified.

    Attributes:
        misplaced: the name of a parameter whose gradient is not in the flat buffer, where there is one.
        clears: a launch may clear the gradients: all are in the flat buffer, so that none share memory.
    """

    span: Span
    gathered: Gathered
    misplaced: str | None = None
    clears: bool = False


@dataclass(slots=True)
class PendingPart:
    """As `Pending`, of slots that need not lie side by side."""

    part: Part
    gathered: Gathered


@dataclass(slots=True)
class Staged:
    """A step of one table that nothing can stop any more."""

    gathered: Gathered
    plan: StepPlan
    launch: Launch

    @property
    def found_inf(self) -> Tensor | None:
        """What its scaler, or its statistics launch, says of infinities."""
        return None if self.launch.scaling is None else self.launch.scaling.found_inf


class LaunchUnit:
    """One table with the backend that updates it and the gradients that feed it."""

    def __init__(
        self,
        slots: list[Slot],
        hyperparameters: Hyperparameters,
        backend: Backend,
        state: Mapping[Tensor, dict[str, Any]],
        turns_of_groups: GroupTurns,
        packs_state: bool,
        takes_parts: bool = False,
    ) -> None:
        self.takes_parts = takes_parts  # see `begin`
        self.table = table = Table(slots, hyperparameters, packs_state)
        self.hyperparameters = hyperparameters
        self.backend = backend
        self.state = state
        self.gradients = Gradients(table, backend.reads_memory, backend.mixes_dtypes)
        self.flat: FlatGradients | None = None
        self._warned_of_flat = False
        self._planner = StepPlanner(table, self.gradients, state, turns_of_groups)
        self.has_new_state = False
        self._groups = {slot.group for slot in slots}
        self.skipped = False  # the last step, by a scaler that the host asked
        # steps may be replayed behind the host's back, at rates that it does not know
        self._is_captured = False
        # somebody may exchange the memory of the state (`state.data = ...`)
        self.state_addresses = make_address_snapshot([])
        self._places_of_state: np.ndarray | None = None

    def note_early(self, slots: list[int]) -> None:
        """As `StepPlanner.note_early`."""
        self._planner.note_early(slots)

    def make_state(self, pending: Pending) -> None:
        """Give the parameters that have a gradient the state of their first step, without taking it."""
        span, active = pending.span, self.gradients.active
        here = np.flatnonzero(active[span.first_slot : span.last_slot]) + span.first_slot
        self._planner.allocate_early(here.tolist())

    def note_state(self) -> None:
        """Take where the state lies now for where it should lie."""
        self.has_new_state = False
        tensors = [local_tensor(t) for of in self.table.state_tensors for t in of.values()]
        self.state_addresses = make_address_snapshot([t for t in tensors if not is_abstract(t)])
        self._places_of_state = None

    def places(self) -> np.ndarray:
        """int64 array [n, 2]: where the memory of each parameter, and of each tensor of its state, begins and ends."""
        if self._places_of_state is None:
            found = [place_of(tensor) for _, tensor in self.held_state()]
            self._places_of_state = np.array(found, np.int64).reshape(-1, 2)
        return np.concatenate([self.gradients.places, self._places_of_state])

    def held_state(self) -> Iterator[tuple[str, Tensor]]:
        """Named as in errors; without the counts, of which there may be one for all parameters."""
        for slot, tensors in zip(self.table.slots, self.table.state_tensors, strict=True):
            for name, tensor in tensors.items():
                if name not in COUNTS:
                    yield f"{name} of {slot.name}", local_tensor(tensor)

    def refuse_rates(self, changed: list[int]) -> None:
        """Raise for groups whose rate is in a tensor that neither the host nor the parameters' device can read."""
        for index in self._groups.intersection(changed):
            group = self.table.groups[index]
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device not in (_CPU, self.table.device):
                raise ValueError(
                    f"{group_label(index, group)}: lr is on {lr.device}, its parameters on {self.table.device}"
                )

    def refuse_edits_in_capture(self, changed: list[int]) -> None:
        """Raise for another rule or turn while a CUDA graph is captured: replays would not follow it."""
        if self.table.counts is not None and self.hyperparameters.changes_rules(changed):
            refuse_in_capture(self.table, "another rule")

    def prepare(self, role: str | None) -> Pending:
        """Read gradients and step counts, and raise if any of them is not acceptable.

        Modifies nothing.
        """
        table = self.table
        if table.given_counts:
            read_given(table)
        bad = table.rows.bad_count() if table.counts is None else None
        if bad is not None:
            self._refuse_count(bad)
        span = table.spans[role]
        pending = Pending(span, self.gradients.gather(span))
        if self.flat is not None:
            mismatched = pending.gathered.mismatched
            pending.misplaced = self.flat.misplaced(table, span, self.gradients.active, mismatched)
            in_place = pending.misplaced is None
            pending.clears = in_place and self.flat.all_placed(span, self.gradients.active)
            if not in_place and not self._warned_of_flat:
                self._warned_of_flat = True
                warn_caller(
                    f"{pending.misplaced}: its gradient is not in the flat buffer, though grads='flat'; what there is "
                    "instead is read where it is. Something else than the optimizer's zero_grad() replaced it or set "
                    "it to None"
                )
        return pending

    def _refuse_count(self, bad: int) -> NoReturn:
        """Raise ValueError for a slot whose step count is none."""
        table = self.table
        found = {"step": table.step_counts[bad], "waited": table.waited_counts[bad]}
        values = ", ".join(f"{name} is {value}" for name, value in found.items())
        raise ValueError(f"{table.slots[bad].name}: its state's {values}")

    def begin(self) -> None:
        """Bring the rows to the coming step, whose parts are prepared and staged one after the other.

        Raises:
            ValueError: a step count is none, or counts or rates live on a device, where rows are no table of one step.
        """
        table = self.table
        if table.counts is not None or self._is_captured:
            raise ValueError(
                f"{table.slots[0].name}: release='backward' needs step counts and rates on the host: it goes neither "
                "with capturable=True nor with a rate in a tensor on a GPU"
            )
        if table.given_counts:
            read_given(table)
        bad = table.rows.bad_count()
        if bad is not None:
            self._refuse_count(bad)
        table.rows.update()
        table.follow_rows()

    def prepare_part(self, part: Part) -> PendingPart:
        """As `prepare`, of a part of the step that `begin` began."""
        return PendingPart(part, self.gradients.gather_part(part))

    def stage_part(self, pending: PendingPart) -> Staged | None:
        """As `stage`, of a part; tables are at the coming step already. `Part.after` concludes it."""
        table, part = self.table, pending.part
        plan = self._planner.plan(part, counted=True)
        if plan is None:
            return None
        if plan.lacks_state:
            self._allocate(plan)
        for run in part.runs:
            self.gradients.stage(pending.gathered, run, plan.written)
        conclusion = [*self._conclusion(pending.gathered, part, plan, None), *part.after]
        launch = Launch(
            table,
            part,
            self.gradients.gradient,
            table.rows.rule,
            self.state,
            moves=plan.moves,
            conclusion=conclusion,
        )
        return Staged(pending.gathered, plan, launch)

    def _allocate(self, plan: StepPlan) -> None:
        """Give the parameters of a plan the state that they lack."""
        refuse_in_capture(self.table, f"the state of {self.table.slots[plan.lacks_state[0]].name}")
        self._planner.allocate(plan)
        self.has_new_state = True

    def stage(
        self,
        pending: Pending,
        clipped: bool,
        scaling: Scaling | None,
        zero_grad: bool = False,
        counted: bool = False,
    ) -> Staged | None:
        """Bring tables and state to the coming step; None where no parameter has a gradient, or nothing may move.

        Args:
            zero_grad: clear gradients in the launch, where that may be.
            counted: the step has a gradient in some table, so that groups that wait do so one step less.
        """
        table, span = self.table, pending.span
        self.skipped = False
        if scaling is not None:
            scaling = scaling.on(table.device)
        if table.counts is None:
            # the host does not know whether a step is taken, or when
            unknown = scaling is not None and scaling.found_inf is not None
            if self._is_captured or (unknown and self.backend.counts_on_device):
                refuse_in_capture(self.table, "its step counts")
                refuse_given_counts(self.table)
                self.has_new_state = True
                count_on_device(self.table, self.state)
            elif scaling is not None and scaling.says_skip():
                self.skipped = True
                return None
        if clipped and span not in table.statistics:
            refuse_in_capture(self.table, "room for its statistics")
        plan = self._planner.plan(span, counted)
        if plan is None:
            return None
        if plan.lacks_state:
            self._allocate(plan)
        if table.counts is None:
            table.rows.update()
            table.follow_rows()
        else:
            follow_current_stream(table)
        self.gradients.stage(pending.gathered, span, plan.written)
        gradient, rule = self.gradients.gradient, table.rows.rule
        statistics = table.statistics_of(span) if clipped else None
        clears = zero_grad and pending.clears
        joint = table.joint_sets
        if joint is not None and not joint.are_needed(plan.moves, span.here):
            joint = None
        launch = Launch(
            table,
            span,
            gradient,
            rule,
            self.state,
            statistics,
            scaling,
            clears,
            plan.moves,
            joint,
            self._conclusion(pending.gathered, span, plan, scaling),
        )
        return Staged(pending.gathered, plan, launch)

    def conclude_anew(self, staged: Staged) -> None:
        """Follow the search for infinities, which is over, in what completes a step that is counted on the device."""
        launch = staged.launch
        launch.conclusion = self._conclusion(
            staged.gathered, launch.span, staged.plan, launch.scaling
        )

    def measure(self, staged: Staged, limits: ClipLimits, of: Part | None = None) -> int:
        """Compute the statistics of the gradients that are about to be stepped; returns the launches made.

        Args:
            of: the slots that count, where not all do.
        """
        launch = staged.launch if of is None else replace(staged.launch, span=of)
        if launch.span.last_tile > launch.span.first_tile:
            return self.backend.statistics(launch, limits)
        launch.needed_statistics.nothing(limits)
        return 0

    def launch(self, staged: Staged) -> int:
        """Update the parameters that have gradients; returns the launches made.

        Where the backend is native, all of it happens or nothing, wherever an interrupt comes.
        """
        plan, launch = staged.plan, staged.launch
        if self.backend.reads_memory:
            # a raw write is invisible to autograd: a backward through a changed parameter has to raise
            increment_versions(plan.params)
        launches = 0
        if launch.span.last_tile > launch.span.first_tile:
            launches = self.backend.step(launch)
        if launch.conclusion:  # the step was none of native calls
            launch.make()
        plan.ready = True
        return launches

    def update(self, staged: Staged) -> int:
        """As `launch`, but without the projection and the conclusion, which `project` makes up for."""
        launch = staged.launch
        if self.backend.reads_memory:
            increment_versions(staged.plan.params)
        return self.backend.update(launch) if launch.span.last_tile > launch.span.first_tile else 0

    def project(self, staged: Staged) -> int:
        """Project what `update` moved, by the factors that are written now, and conclude the step."""
        launch, launches = staged.launch, 0
        if launch.joint_sets is not None and launch.span.last_tile > launch.span.first_tile:
            launches = self.backend.project(launch)
        if launch.conclusion:
            launch.make()
        staged.plan.ready = True
        return launches

    def _conclusion(
        self, gathered: Gathered, span: Span | Part, plan: StepPlan, scaling: Scaling | None
    ) -> Sequence[partial[Any]]:
        """See `Launch.conclusion`."""
        table = self.table
        if table.counts is None:
            calls: Sequence[partial[Any]] = plan.count  # nearly always all that there is to do
            if plan.waits_on_host or not plan.ready:
                calls = self._planner.counting(span, plan)
        else:
            found_inf = None if scaling is None else scaling.found_inf
            every, sums = table.update_every, table.sums
            calls = table.counts.advances_of_empty(span, plan.has_grad, every, sums, found_inf)
        if table.given_counts:
            calls = [*calls, *advances_of_given(table, plan.moves)]
        if not gathered.write_back:
            return calls
        # into detached ones, or autograd would ask for no_grad(), which is Python
        return [*(partial(p.detach().copy_, copy) for p, copy in gathered.write_back), *calls]

    def follow(self, accepted: Accepted) -> None:
        """Follow hyperparameters that were accepted."""
        table, flipped = self.table, accepted.new_rules
        table.rows.refill()
        table.may_be_captured = any(table.groups[i].get("capturable") for i in self._groups)
        self._is_captured = self.backend.counts_on_device and (
            table.may_be_captured or self.hyperparameters.rates_live_on(table.device)
        )
        if not flipped:
            return
        # a rule may need state now that it did not need before
        slot_group = table.rows.slot_group
        table.set_turns()
        if table.joint_sets is not None or self.hyperparameters.has_joint_sets:
            table.set_joint_sets()
        begin_anew(table, np.flatnonzero(np.isin(slot_group, accepted.new_turns)).tolist())
        affected = np.isin(slot_group, flipped)
        self._planner.forget(affected)
        slots = np.flatnonzero(affected).tolist()
        averaged = [self.hyperparameters.rule(table.slots[i].group) & Rule.EMA for i in slots]
        unwanted = [i for i, is_averaged in zip(slots, averaged, strict=True) if not is_averaged]
        self.has_new_state |= drop_averages(table, unwanted, self.state)
        note_momentum(table, self.hyperparameters, self.state, affected)
