"""Threads that run together, and where each of them is in the kernel.

Threads at the same instruction form a group. The group that is farthest behind goes on, until it meets another one, so
that groups join again after a branch. A thread waits at a barrier for its block, at an instruction of a warp for its
warp (section 9.7.13), whatever order the groups run in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .accesses import MemoryOperation
from .kernel import Approximation, Barrier, Branch, Exit, Fence, WarpBarrier
from .lanes import WARP, Fault, Lanes, Mask
from .warp import WarpOperation

if TYPE_CHECKING:
    from .launch import Launch


class Gang:
    """Some warps of a launch. `run` is a generator that stops before what other threads could notice."""

    def __init__(self, launch: Launch, lanes: Lanes) -> None:
        self._launch = launch
        self._kernel = launch.kernel
        self.lanes = lanes
        self._groups: dict[int, Mask] = {0: lanes.everyone}
        self._held: set[int] = set()  # groups that wait for the rest of their warps
        # at a barrier: where they go on, which they are, and how many barriers their blocks had passed
        self._waiting: list[tuple[int, Mask, NDArray[np.int64]]] = []
        self._has_ended = np.zeros(lanes.count, np.bool_)

    @property
    def is_over(self) -> bool:
        """All threads have ended."""
        return not self._groups and not self._waiting

    def waits_at(self) -> list[str]:
        """The instructions at which threads wait."""
        places = [*self._held, *(place - 1 for place, _, _ in self._waiting)]
        return [str(self._kernel.text.instructions[place]) for place in places]

    def run(self) -> Iterator[None]:
        """Run until all threads have ended, or none can go on without those of other gangs."""
        launch, lanes = self._launch, self.lanes
        decoded, guards, kernel = self._kernel.decoded, self._kernel.guards, self._kernel
        at = 0
        try:
            while True:
                self._pass_barriers()
                ready = [place for place in self._groups if place not in self._held]
                if not ready:
                    return
                at = min(ready)
                mask: Mask | None = self._groups.pop(at)
                if mask.all():
                    mask = None
                limit = (
                    min(self._groups, default=len(decoded)) if not self._held else self._next(at)
                )
                while True:
                    launch.count()
                    operation, guard = decoded[at], guards[at]
                    active = mask
                    if guard is not None:
                        lanes.demand((guard,), mask, "the predicate")
                        holds = lanes.full(lanes.get(guard))
                        if kernel.text.instructions[at].negated:
                            holds = ~holds
                        active = holds if mask is None else mask & holds
                        if active.all():
                            active = None
                        elif not active.any() and not isinstance(operation, Branch):
                            at += 1
                            if at >= limit:
                                self._join(at, mask)
                                break
                            continue
                    if isinstance(operation, MemoryOperation):
                        if launch.may_switch_before(operation):
                            yield
                        operation.run(launch, lanes, active)
                    elif isinstance(operation, Branch):
                        self._branch(at, operation, mask, active)
                        break
                    elif isinstance(operation, Exit):
                        self._end(at, mask, active)
                        break
                    elif isinstance(operation, Barrier):
                        if launch.switches:
                            yield
                        self._arrive(at, operation, mask, active)
                        break
                    elif isinstance(operation, WarpOperation | WarpBarrier):
                        self._leave(at, mask, active)
                        self._run_in_warps(at, operation, active)
                        break
                    elif isinstance(operation, Fence):
                        if launch.switches:
                            yield
                        launch.fence(operation, lanes, active)
                    elif isinstance(operation, Approximation):
                        operation.unit = launch.unit
                        operation.run(lanes, active)
                    else:
                        operation(lanes, active)
                    at += 1
                    if at >= limit:
                        self._join(at, mask)
                        break
        except Fault as fault:
            instructions = kernel.text.instructions
            where = instructions[min(at, len(instructions) - 1)]
            raise Fault(f"{kernel.name}: {where}: {fault}") from None

    def _next(self, at: int) -> int:
        return min(
            (place for place in self._groups if place > at), default=len(self._kernel.decoded)
        )

    def _join(self, at: int, mask: Mask | None) -> None:
        """Have these threads go on at an instruction, together with those that are there."""
        if at >= len(self._kernel.decoded):
            raise Fault("threads run beyond the end of the kernel")
        mask = self.lanes.everyone if mask is None else mask
        there = self._groups.get(at)
        self._groups[at] = mask if there is None else mask | there
        self._held.discard(at)

    def _branch(self, at: int, branch: Branch, mask: Mask | None, active: Mask | None) -> None:
        self._leave(at, mask, active)
        if active is not None and not active.any():
            return
        if branch.index is None:
            self._join(branch.targets[0], active)
            return
        registers = self._kernel.registers
        number = registers.number(branch.index)
        self.lanes.demand((number,), active, "the index of a branch")
        index = self.lanes.full(self.lanes.get(number))
        for value in np.unique(index if active is None else index[active]):
            if value >= len(branch.targets):
                raise Fault(f"branch {value} of {len(branch.targets)}")
            chosen = index == value
            self._join(branch.targets[value], chosen if active is None else chosen & active)

    def _end(self, at: int, mask: Mask | None, active: Mask | None) -> None:
        self._leave(at, mask, active)
        self._has_ended |= True if active is None else active

    def _run_in_warps(
        self, at: int, operation: WarpOperation | WarpBarrier, mask: Mask | None
    ) -> None:
        """Run the instruction for warps that are complete, which go on; hold the others."""
        complete = None
        if mask is not None:
            complete = np.repeat(mask.reshape(-1, WARP).all(1), WARP)
            if (mask & ~complete).any():
                self._join(at, mask & ~complete)
                self._held.add(at)
            if not complete.any():
                return
        if isinstance(operation, WarpOperation):
            operation.run(self.lanes, complete)
        self._launch.order_warps(operation, self.lanes, complete)
        self._join(at + 1, complete)

    def _leave(self, at: int, mask: Mask | None, active: Mask | None) -> None:
        """Have the threads that do not execute an instruction go on behind it."""
        if active is not None:
            stay = ~active if mask is None else mask & ~active
            if stay.any():
                self._join(at + 1, stay)

    def _arrive(self, at: int, barrier: Barrier, mask: Mask | None, active: Mask | None) -> None:
        self._leave(at, mask, active)
        arriving = self.lanes.everyone if active is None else active
        passed = self._launch.barriers_passed[self.lanes.block]
        self._waiting.append((at + 1, arriving, passed))
        self._launch.arrive(barrier, self.lanes.block[arriving])

    def _pass_barriers(self) -> None:
        """Have threads go on whose block has arrived at the barrier."""
        waiting, self._waiting = self._waiting, []
        passing: dict[int, Mask] = {}
        for at, mask, passed in waiting:
            free = mask & (self._launch.barriers_passed[self.lanes.block] > passed)
            if free.any():
                passing[at] = passing.get(at, False) | free
                mask = mask & ~free
            if mask.any():
                self._waiting.append((at, mask, passed))
        for at, free in passing.items():
            by_warp = free.reshape(-1, WARP)
            if self._kernel.decoded[at - 1].is_aligned and (by_warp.any(1) != by_warp.all(1)).any():
                barrier = self._kernel.text.instructions[at - 1]
                raise Fault(f"some threads of a warp pass {barrier}, others wait elsewhere")
            self._join(at, free)
