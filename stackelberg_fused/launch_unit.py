"""One table with the backend that updates it: what a step reads and checks first, and then launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .backends import Backend, Work
from .gradients import Gathered, Gradients
from .groups import group_label
from .layout import Slot, Span, Table
from .reader import make_places
from .rules import Rule
from .scaling import Scaling
from .settings import GroupSettings
from .sharding import local_tensor
from .state import allocate_state
from .statistics import ClipLimits

_CPU = torch.device("cpu")


@dataclass(slots=True)
class Pending:
    """What was read and checked of one table before anything is modified."""

    span: Span
    gathered: Gathered


@dataclass(slots=True)
class _Active:
    """Which slots of a span have gradients, kept while that does not change."""

    version: int
    mask: np.ndarray
    params: list[Tensor]
    steps: np.ndarray | slice  # `mask`, in the form that NumPy is fastest with
    ready: bool = False  # whether all of them have taken a step
    empty: Tensor | None = (
        None  # of those without elements, where counts live on the device: 1 if they step
    )


@dataclass(slots=True)
class Staged:
    """A step of one table that nothing can stop any more."""

    gathered: Gathered
    active: _Active
    work: Work


class LaunchUnit:
    """One table with the backend that updates it and the gradients that feed it."""

    def __init__(
        self,
        slots: list[Slot],
        settings: GroupSettings,
        backend: Backend,
        state: Mapping[Tensor, dict],
    ) -> None:
        self.table = table = Table(slots, settings)
        self.settings = settings
        self.backend = backend
        self.state = state
        self.gradients = Gradients(table, backend.reads_memory)
        self._params = [slot.param for slot in slots]
        self._has_state = np.zeros(len(slots), bool)
        self._active: dict[Span, _Active] = {}
        self.has_new_state = False
        self._groups = {slot.group for slot in slots}
        self._empty = torch.zeros(0, dtype=torch.int64)
        self.skipped = False  # the last step, by a scaler that the host asked
        # steps may be replayed behind the host's back, at rates that it does not know
        self._is_captured = False
        self._places = make_places([])

    def note_state(self) -> None:
        """Take where the state lies now for where it should lie."""
        self.has_new_state = False
        # one that a step count alone stands for is looked at by its step count
        entries = [
            [t for name, t in tensors.items() if name != "step"] or list(tensors.values())
            for tensors in self.table.state_tensors
        ]
        self._places = make_places([local_tensor(t) for tensors in entries for t in tensors])

    def state_moved(self) -> bool:
        """Whether somebody exchanged the memory of a state tensor (`state.data = ...`)."""
        return self._places.moved()

    def refuse_rates(self, changed: list[int]) -> None:
        """Raise for groups whose rate is in a tensor that neither the host nor the parameters' device can read."""
        for index in self._groups.intersection(changed):
            group = self.table.groups[index]
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device not in (_CPU, self.table.device):
                raise ValueError(
                    f"{group_label(index, group)}: lr is on {lr.device}, its parameters on {self.table.device}"
                )

    def refuse_shards(self) -> None:
        """Raise for a DTensor, of whose gradient only a part is here to be measured."""
        for i in self.gradients.sharded:
            raise ValueError(
                f"{self.table.slots[i].name}: max_grad_norm does not know DTensor shards; clip with "
                "torch.nn.utils.clip_grad_norm_ before the step"
            )

    def prepare(self, role: str | None) -> Pending:
        """Read gradients and step counts, and raise if any of them is not acceptable.

        Modifies nothing.
        """
        table = self.table
        bad = table.rows.bad_count() if table.counts is None else None
        if bad is not None:
            label, count = table.slots[bad].name, table.step_counts[bad]
            raise ValueError(f"{label}: its state's step is {count}")
        span = table.spans[role]
        return Pending(span, self.gradients.gather(span))

    def stage(self, pending: Pending, clipped: bool, scaling: Scaling | None) -> Staged | None:
        """Bring tables and state to the coming step; None where no parameter has a gradient, or nothing may move."""
        table, span = self.table, pending.span
        self.skipped = False
        if scaling is not None:
            scaling = scaling.on(table.device)
        if table.counts is None:
            # the host does not know whether a step is taken, or when
            unknown = scaling is not None and scaling.found_inf is not None
            if self._is_captured or (unknown and self.backend.counts_on_device):
                self._refuse_in_capture("its step counts")
                self._count_on_device()
            elif scaling is not None and scaling.says_skip():
                self.skipped = True
                return None
        if clipped and not table.has_statistics:
            self._refuse_in_capture("room for its statistics")
        active = self._active.get(span)
        if active is None or active.version != self.gradients.active_version:
            active = self._activate(span)
        if not active.params:
            return None
        if table.counts is None and table.rows.update():
            table.records["row"] = table.rows.slot_row
            table.version += 1
        self.gradients.stage(pending.gathered, span)
        gradient, rule = self.gradients.gradient, table.rows.rule
        return Staged(
            pending.gathered,
            active,
            Work(table, span, gradient, rule, self.state, clipped, scaling),
        )

    def measure(self, staged: Staged, limits: ClipLimits) -> int:
        """Gather the statistics of the gradients that are about to be stepped; returns the launches made."""
        span = staged.work.span
        if span.last_tile > span.first_tile:
            return self.backend.statistics(staged.work, limits)
        self.table.statistics.nothing(limits)
        return 0

    def launch(self, staged: Staged) -> int:
        """Update the parameters that have gradients; returns the launches made."""
        table, active, span = self.table, staged.active, staged.work.span
        if self.backend.reads_memory:
            # a raw write is invisible to autograd: a backward through a changed parameter has to raise
            increment_version(active.params)
        launches = 0
        if span.last_tile > span.first_tile:
            launches = self.backend.step(staged.work)
        for param, copy in staged.gathered.write_back:
            with torch.no_grad():
                param.copy_(copy)
        if table.counts is not None:
            self._count_empty(staged)
        else:
            table.step_counts[active.steps] += 1
            if not active.ready:
                table.momentum_ready[active.steps] = True
                active.ready = True
        return launches

    def _refuse_in_capture(self, what: str) -> None:
        """Raise where memory would be allocated that every replay of a CUDA graph would clear."""
        if self.table.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"step() is being captured in a CUDA graph, but {what} is not on the device yet: take a step before"
            )

    def _count_on_device(self) -> None:
        table = self.table
        table.count_on_device()
        for i, tensors in enumerate(table.state_tensors):
            if "step" in tensors:
                param = table.slots[i].param
                self.state[param]["step"] = tensors["step"] = table.steps[i]
        empty = [i for i, slot in enumerate(table.slots) if not slot.local.numel()]
        self._empty = torch.tensor(empty, dtype=torch.int64, device=table.device)
        self.has_new_state = True

    def _count_empty(self, staged: Staged) -> None:
        """Advance the counts of parameters without elements: no block comes by them."""
        if not len(self._empty):
            return
        active, scaling = staged.active, staged.work.scaling
        if active.empty is None:
            here = torch.from_numpy(active.mask).to(self._empty.device)
            active.empty = here[self._empty].float()
        taken = active.empty
        if scaling is not None and scaling.found_inf is not None:
            taken = taken * (scaling.found_inf.view(()) == 0)
        self.table.steps.index_add_(0, self._empty, taken)

    def _activate(self, span: Span) -> _Active:
        """Note which slots step, and allocate the state that any of them lacks."""
        mask = np.zeros(len(self._params), bool)
        here = slice(span.first_slot, span.last_slot)
        mask[here] = self.gradients.active[here]
        indices = np.flatnonzero(mask).tolist()
        missing = [i for i in indices if not self._has_state[i]]
        if missing:
            self._refuse_in_capture(f"the state of {self.table.slots[missing[0]].name}")
            allocate_state(self.table, missing, self.state)
            self.has_new_state = True
            self._has_state[missing] = True
        active = _Active(
            self.gradients.active_version,
            mask,
            [self._params[i] for i in indices],
            slice(None) if mask.all() else mask,
        )
        self._active[span] = active
        return active

    def follow(self, flipped: list[int]) -> None:
        """Follow settings that were accepted; those of `flipped` groups with another rule than before."""
        self.table.rows.refill()
        table = self.table
        table.may_be_captured = any(table.groups[i].get("capturable") for i in self._groups)
        self._is_captured = self.backend.counts_on_device and (
            table.may_be_captured or self.settings.rates_live_on(table.device)
        )
        if not flipped:
            return
        # a rule may need state now that it did not need before
        self._active.clear()
        affected = np.isin(table.rows.slot_group, flipped)
        self._has_state[affected] = False
        for i in np.flatnonzero(affected).tolist():
            slot = table.slots[i]
            entry = self.state.get(slot.param) or {}
            # one without a step was allocated for a step that a gradient scaler skipped
            has_buffer = entry.get("momentum_buffer") is not None and (
                table.counts is not None or table.step_counts[i] > 0
            )
            is_momentum = self.settings.rule(slot.group) & Rule.MOMENTUM
            table.momentum_ready[i] = has_buffer or not is_momentum
        if table.counts is not None:
            self._refuse_in_capture("another rule")
            rules = [self.settings.rule(slot.group) for slot in table.slots]
            momentum = np.array(rules) & Rule.MOMENTUM != 0
            ready = torch.from_numpy(table.momentum_ready.astype(np.int32)).to(table.device)
            mask, momentum = (torch.from_numpy(m).to(table.device) for m in (affected, momentum))
            mask &= ~momentum | (table.counts.steps > 0)
            table.counts.ready.copy_(torch.where(mask, ready, table.counts.ready))
