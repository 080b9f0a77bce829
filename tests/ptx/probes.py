"""What a changed kernel does in a run: observers of its accesses, and instructions that note what a change changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accesses import Access, Load, MemoryOperation
from .caught_launch import CaughtLaunch
from .kernel import Fence, Kernel, WarpBarrier
from .lanes import Lanes, Mask
from .launch import Launch
from .regions import TABLES
from .warp import WarpOperation

READ_BY_ALL = {name for of_launch in TABLES.values() for name in of_launch}


class _Quiet:
    """An observer that looks at accesses only."""

    def access(self, access: Access, lanes: Lanes) -> None:
        raise NotImplementedError

    def fence(self, fence: Fence, lanes: Lanes, active: NDArray[np.intp]) -> None:
        pass

    def barrier(self, block: int) -> None:
        pass

    def warps(
        self, operation: WarpOperation | WarpBarrier, lanes: Lanes, active: NDArray[np.intp]
    ) -> None:
        pass


class Counting(_Quiet):
    """Counts the accesses of each thread by each instruction, but for what is loaded of the launch's tables."""

    def __init__(self, caught: CaughtLaunch) -> None:
        self.found: Counter[tuple[int, int]] = Counter()
        self._tables = [r for r in caught.regions if r.name in READ_BY_ALL]

    def access(self, access: Access, lanes: Lanes) -> None:
        line = access.instruction.line
        low, high = access.addresses.min(), access.addresses.max()
        if any(r.address <= low and high < r.address + r.nbytes for r in self._tables):
            return
        self.found.update((line, int(t)) for t in lanes.thread[access.lanes])


class Reached(_Quiet):
    """Notes the buffers that some instructions reach, by line."""

    def __init__(self, caught: CaughtLaunch, found: dict[int, set[str]]) -> None:
        self._regions, self._found = caught.regions, found

    def access(self, access: Access, lanes: Lanes) -> None:
        names = self._found.get(access.instruction.line)
        if names is None:
            return
        for address in np.unique(access.addresses).tolist():
            names |= {r.name for r in self._regions if 0 <= address - r.address < r.nbytes}


class Poisoned(MemoryOperation):
    """An access without its predicate, of which what the further threads load or store is undefined.

    Attributes:
        further: threads that the predicate would have kept from it.
    """

    def __init__(self, operation: MemoryOperation, guard: int, negated: bool) -> None:
        self.__dict__ |= operation.__dict__
        self._operation, self._guard, self._negated = operation, guard, negated
        self.further = 0

    def run(self, launch: Launch, lanes: Lanes, mask: Mask | None) -> None:
        holds = lanes.full(lanes.get(self._guard)) ^ self._negated
        real, further = (part if mask is None else part & mask for part in (holds, ~holds))
        if further.any():
            self.further += int(further.sum())
            self._operation.run(launch, lanes, further)
            self._poison(launch, lanes, further)
        if real.any():
            # so that where both store, which checks find unless it is the same, theirs stays
            self._operation.run(launch, lanes, None if real.all() else real)

    def _poison(self, launch: Launch, lanes: Lanes, further: Mask) -> None:
        operation: Any = self._operation
        if isinstance(operation, Load):
            for register in operation._destinations:
                lanes.write(register, lanes.get(register), further, lanes.everyone)
        else:
            _, addresses, places = operation._reach(launch, lanes, further)
            for region, inside in places:
                at = addresses if inside is None else addresses[inside]
                for k in range(len(operation._values)):
                    operation._mark(region, at, k, np.ones(len(at), np.bool_))


class Compared:
    """A comparison with a limit, changed.

    Attributes:
        different: threads for which the change gives something else.
    """

    def __init__(self, kernel: Kernel, changed: Kernel, at: int) -> None:
        self._before, self._after = kernel.decoded[at], changed.decoded[at]
        self._result = kernel.registers.number(kernel.text.instructions[at].operands[0])
        self.different = 0

    def __call__(self, lanes: Lanes, mask: Mask | None) -> None:
        self._before(lanes, mask)
        before = lanes.full(lanes.get(self._result))
        self._after(lanes, mask)
        different = before != lanes.full(lanes.get(self._result))
        self.different += int((different if mask is None else different & mask).sum())
