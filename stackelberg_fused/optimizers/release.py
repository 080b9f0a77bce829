"""`release="backward"`: parameters are updated, and gradients freed, while the backward pass still computes others."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..engine import parts as steps
from ..engine.engine import Engine
from ..engine.side_stream import SideStream, SideStreams
from ..groups.option_types import Role
from ..groups.param_groups import ROLES, param_label
from ..layout.part import Part
from ..layout.scaling import Scaling
from ..layout.statistics import NOBODY, Launched
from ..layout.table import RebuildNeeded
from ..memory.presence import is_uninitialized
from ..memory.sharding import local_tensor
from ..torch_compat import at_end_of_backward
from .release_refused import refuse_reduced_later, refuse_scaler

if TYPE_CHECKING:
    from .engine_holder import EngineHolder

# an update begins once gradients of so many bytes are there, or of this share of all
BATCH_BYTES = 4 << 20
BATCH_SHARE = 128
MAX_BATCHES = 1024  # remembered: sets of parameters whose gradients arrived one after the other

_GONE = torch.empty(0)  # in the place of a parameter that is in no group any more

# how far a parameter is in the step that runs
IDLE, PENDING, RELEASED, WHOLE = range(4)


class Release:
    """Hooks on parameters, and the step that they take part after part.

    A step goes from the first gradient that arrives to `step()`, or to `zero_grad()` where it is given up. All its
    parameters move by the settings, and the number of the step, of its first update.

    Args:
        optimizer: whose parameters these are; a weak reference, as parameters keep their hooks.
        held: gradients of these roles wait, until `only` lets them go.
    """

    def __init__(self, optimizer: weakref.ref[EngineHolder], held: tuple[Role, ...]) -> None:
        self._optimizer = optimizer
        self._params: list[Tensor] = []  # by number; a number stays that of its parameter
        self._numbers: dict[int, int] = {}
        self._labels: list[str] = []
        self._roles: list[str] = []
        self._bytes: list[int] = []
        self._unhooked: list[int] = []
        self._places: list[tuple[int, int] | None] = []  # index of a launch unit, and slot
        self._side: list[SideStream | None] = []
        self._progress = bytearray()
        self._progress_array = np.frombuffer(self._progress, np.uint8)
        self._engine: Engine | None = None
        self._batches: dict[tuple[int, ...], dict[int, Part]] = {}
        self._pending: list[int] = []
        self._limit = self._missing_bytes = 0.0  # until there is an engine
        self._has_begun = self._is_checked = False
        self._launches = 0
        self._held = {role: int(role in held) for role in ROLES}
        self._is_unusual = bool(held)  # a hook has to look twice
        self._is_of: dict[str | None, np.ndarray] = {}
        self._streams = SideStreams()
        self._joins_later = False

    # gradients arrive

    def _arrived_in_turn(self, number: int) -> bool:
        """Tell whether a gradient belongs to the step, where the hook could not see it at a glance.

        Raises:
            RuntimeError: it is the second one of its parameter.
        """
        progress = self._progress[number]
        if progress == RELEASED:
            raise self._second(number)
        side, role = self._side[number], self._roles[number]
        if progress == WHOLE or self._held[role] > 0:
            if side is not None:
                side.note_source(held=role)
            return False
        if progress == PENDING:
            raise self._second(number)
        if side is not None:
            side.note_source()
        return True

    def _release(self) -> None:
        """Update the parameters whose gradients wait, as the only call that is at the optimizer."""
        optimizer = self._optimizer()
        if optimizer is not None:
            optimizer._shared.alone("a backward pass with release='backward'", self._update)

    def _second(self, number: int) -> RuntimeError:
        return RuntimeError(
            f"{self._labels[number]}: its gradient arrives for the second time since the last step(), and "
            "release='backward' applies the first one as it comes. Call step() after each backward pass, and have all "
            "but the last one of a step run within opt.accumulate(); zero_grad() gives up a step without step()"
        )

    def _update(self) -> None:
        """Update the parameters whose gradients wait."""
        engine = self._begun_engine()
        if self._missing_bytes > 0:  # which was not known
            return
        try:
            self._launches += steps.update(engine, self._batch(), self._streams)
        except RebuildNeeded:
            engine = self._begun_engine(again=True)
            self._launches += steps.update(engine, self._batch(), self._streams)
        self._keep([])
        self._join_later()

    def _batch(self) -> dict[int, Part]:
        """The parts of the pending parameters."""
        pending = [number for number in self._pending if self._progress[number] == PENDING]
        key = tuple(pending)
        if key not in self._batches:
            if len(self._batches) >= MAX_BATCHES:
                self._batches.clear()
            self._batches[key] = self._parts(pending)
        return self._batches[key]

    def _parts(self, numbers: list[int]) -> dict[int, Part]:
        """Parts of all launch units that these parameters are in; their update frees gradients in the same go."""
        assert self._engine is not None
        by_unit: dict[int, list[int]] = {}
        for number in numbers:
            place = self._places[number]
            if place is not None:
                by_unit.setdefault(place[0], []).append(number)
        found = {}
        for index, members in by_unit.items():
            slots = [place[1] for n in members if (place := self._places[n]) is not None]
            mark = partial(self._progress_array.__setitem__, np.array(members), RELEASED)
            free = [partial(setattr, self._params[n], "grad", None) for n in members]
            found[index] = Part(self._engine.units[index].table, slots, [mark, *free])
        return found

    def _begun_engine(self, again: bool = False) -> Engine:
        """The engine, in the midst of a step.

        Args:
            again: build a new one, since the tables do not describe the parameters any more.
        """
        optimizer = self._optimizer()
        assert optimizer is not None  # it is in a step, or a hook asked
        shared = optimizer._shared
        shared.refuse_averages("a backward pass with release='backward'")
        engine = optimizer._build_again() if again else optimizer._ready()
        if engine is not self._engine:  # an interrupt came as it was built
            self.follow(shared.param_groups, engine)
        if not self._has_begun:
            if not self._is_checked:
                refuse_reduced_later(self._params)
                self._is_checked = True
            try:
                engine.begin()
            except RebuildNeeded:
                engine = optimizer._build_again()
                engine.begin()
            self._has_begun = True
        return engine

    # the engine

    def follow(self, groups: list[dict[str, Any]], engine: Engine | None) -> None:
        """Follow an engine that was built, or groups before there is one."""
        gone = dict(self._numbers)
        for index, group in enumerate(groups):
            for position, param in enumerate(group["params"]):
                number = self._numbers.get(id(param))
                if number is None:
                    number = self._add(param)
                gone.pop(id(param), None)
                self._labels[number] = param_label(index, group, position)
                self._roles[number] = group["role"]
        for key, number in gone.items():
            del self._numbers[key]
            self._params[number] = _GONE
        self.hook()
        roles = np.array(self._roles)
        self._is_of = {role: (roles == role) | (role is None) for role in (None, *ROLES)}
        self._engine, self._has_begun, self._is_checked = engine, False, False
        self._batches.clear()
        if engine is None:
            return
        units = engine.units
        where = {
            id(slot.param): (i, k)
            for i, u in enumerate(units)
            for k, slot in enumerate(u.table.slots)
        }
        progress, total = bytearray(len(self._params)), 0
        for number, param in enumerate(self._params):
            place = where.get(id(param))
            takes_parts = place is not None and units[place[0]].takes_parts
            self._places[number] = place if takes_parts else None
            if not takes_parts:
                progress[number] = WHOLE
                continue
            progress[number] = self._progress[number] % WHOLE
            local = local_tensor(param)
            self._bytes[number] = local.numel() * local.element_size()
            self._side[number] = self._streams.of(local.device)
            self._is_unusual |= self._side[number] is not None
            total += self._bytes[number] if param.requires_grad else 0
        self._progress = progress
        self._progress_array = np.frombuffer(progress, np.uint8)
        self._limit = max(BATCH_BYTES, total / BATCH_SHARE)
        self._keep(self._pending)

    def _keep(self, pending: list[int]) -> None:
        """Have these gradients wait."""
        self._pending = pending
        self._missing_bytes = self._limit - sum(self._bytes[n] for n in pending)

    def _add(self, param: Tensor) -> int:
        """Number a parameter."""
        number = self._numbers[id(param)] = len(self._params)
        self._params.append(param)
        self._labels.append("")
        self._roles.append("body")
        self._bytes.append(0)
        self._unhooked.append(number)
        self._places.append(None)
        self._side.append(None)
        self._progress = self._progress + b"\0"
        self._progress_array = np.frombuffer(self._progress, np.uint8)
        return number

    def hook(self) -> None:
        """Have autograd tell of the gradients of parameters that need some; frozen ones may need some later."""
        if not self._unhooked:
            return
        me, left = weakref.ref(self), []
        for number in self._unhooked:
            param = self._params[number]
            if param.requires_grad and not is_uninitialized(param):
                param.register_post_accumulate_grad_hook(_hook(me, number))
            else:
                left.append(number)
        self._unhooked = left

    # the step

    def step(
        self, engine: Engine, role: Role | None, scaling: Scaling | None, checks_all: bool
    ) -> Launched | None:
        """What is left to do in `step()`; returns as `Engine.step`, whose arguments and errors these are."""
        if scaling is not None:
            refuse_scaler()
        self.join()
        self.hook()
        if checks_all and role is not None:
            engine.check("body" if role == "head" else "head")
        if not self._has_released(role):
            last = engine.step(role)
            if last is not None:
                launches, self._launches = last[0] + self._launches, 0
                self._streams.let_sources_wait()
                self._clear(role)
                self.end(role)
                last = launches, None, NOBODY
            return last
        engine = self._begun_engine()
        left = self._parts(self._left(engine, role))
        self._launches += steps.finish(engine, left, role, self._streams)
        launches, self._launches = self._launches, 0
        self.end(role)
        return launches, None, NOBODY

    def _has_released(self, role: Role | None) -> bool:
        """Tell whether a parameter of a role, or of any, was updated since the last step."""
        if RELEASED not in self._progress:
            return False
        return bool((self._is_of[role] & (self._progress_array == RELEASED)).any())

    def _left(self, engine: Engine, role: Role | None) -> list[int]:
        """The parameters of a role that `step()` has to look at."""
        left = []
        unmoved = self._is_of[role] & (self._progress_array < RELEASED)
        for number in np.flatnonzero(unmoved).tolist():
            place = self._places[number]
            assert place is not None
            # one without a gradient waits for its turn too
            turns = engine.units[place[0]].table.takes_turns
            if turns or self._params[number].grad is not None:
                left.append(number)
        return left

    def _clear(self, role: Role | None) -> None:
        for param, of_role in zip(self._params, self._roles, strict=True):
            if role in (None, of_role):
                param.grad = None

    def end(self, role: Role | None) -> None:
        """Have the next gradients of a role, or of all, be those of the next step."""
        progress, self._has_begun = self._progress_array, False
        progress[self._is_of[role] & (progress < WHOLE)] = IDLE
        self._keep([] if role is None else [n for n in self._pending if progress[n]])
        if not self._pending:  # or those of the other player may be of the same streams
            self._streams.forget_sources()
        for ended in ROLES if role is None else (role,):
            self._streams.forget_sources(held=ended)

    def give_up(self, role: Role | None) -> int:
        """End a step of a role, or of all, by clearing gradients; returns the launches that it made."""
        self.join()
        launches, self._launches = self._launches, 0
        self.end(role)
        return launches

    def refuse_midway(self, what: str) -> None:
        """Raise RuntimeError where gradients have arrived whose step is not over."""
        self.join()
        if PENDING in self._progress or RELEASED in self._progress:
            raise RuntimeError(
                f"{what}: gradients were released since the last step(); call step(), or zero_grad() to give it up"
            )

    # who waits

    @contextmanager
    def holding(self, role: Role | None) -> Iterator[None]:
        """Within this context gradients of a role, or of all, accumulate."""
        with self._changed([r for r in ROLES if role in (None, r)], 1):
            yield

    @contextmanager
    def only(self, role: Role) -> Iterator[None]:
        """Within this context gradients of a role that are held everywhere else are released."""
        with self._changed([role], -1):
            yield

    @contextmanager
    def _changed(self, roles: list[Any], by: int) -> Iterator[None]:
        self._hold(roles, by)
        try:
            yield
        finally:
            self._hold(roles, -by)

    def _hold(self, roles: list[Any], by: int) -> None:
        for role in roles:
            self._held[role] += by
        is_held = any(count > 0 for count in self._held.values())
        self._is_unusual = is_held or self._streams.are_used

    def join(self) -> None:
        """Have the current stream wait for updates that run beside it."""
        self._streams.join()
        self._joins_later = False

    def _join_later(self) -> None:
        """Join at the end of the backward pass, whatever is done then with the parameters."""
        if self._streams.are_used and not self._joins_later:
            self._joins_later = True
            if not at_end_of_backward(self.join):
                self.join()


def _hook(release: weakref.ref[Release], number: int) -> Callable[[Tensor], None]:
    """What autograd calls with a parameter whose gradient is complete; parameters outlive their optimizers."""

    # one function, and few lookups: it costs as much as all else that is done for a small parameter
    def arrived(_: Tensor) -> None:
        found = release()
        if found is None:
            return
        progress = found._progress
        if (progress[number] or found._is_unusual) and not found._arrived_in_turn(number):
            return
        progress[number] = PENDING
        found._pending.append(number)
        found._missing_bytes -= found._bytes[number]
        if found._missing_bytes <= 0:
            found._release()

    return arrived
