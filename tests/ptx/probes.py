"""What a changed kernel does in a run: observers of its accesses, and instructions that note what a change changes."""

from __future__ import annotations

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
        self._threads = caught.grid * caught.threads
        self._tables = [r for r in caught.regions if r.name in READ_BY_ALL]
        self._found: dict[int, NDArray[np.int64]] = {}

    def access(self, access: Access, lanes: Lanes) -> None:
        low, high = access.addresses.min(), access.addresses.max()
        if any(r.address <= low and high < r.address + r.nbytes for r in self._tables):
            return
        line = access.instruction.line
        if line not in self._found:
            self._found[line] = np.zeros(self._threads, np.int64)
        self._found[line][lanes.thread[access.lanes]] += 1

    @property
    def found(self) -> dict[int, bytes]:
        """By line, a count for each thread."""
        return {line: counts.tobytes() for line, counts in self._found.items()}


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


class Sharing(_Quiet):
    """Looks for elements of some buffers that several threads access, of those that some instructions store.

    Attributes:
        stored: how many these instructions store.
    """

    def __init__(self, caught: CaughtLaunch, names: tuple[str, ...], lines: set[int]) -> None:
        self._regions = [r for r in caught.regions if r.name.startswith(names)]
        self._lines = lines
        self._threads: dict[int, set[int]] = {}
        self._stored: set[int] = set()

    def access(self, access: Access, lanes: Lanes) -> None:
        addresses, threads = access.addresses, lanes.thread[access.lanes]
        for region in self._regions:
            inside = (addresses >= region.address) & (addresses < region.address + region.nbytes)
            for address, thread in zip(
                addresses[inside].tolist(), threads[inside].tolist(), strict=True
            ):
                for byte in range(address, address + access.size):
                    self._threads.setdefault(byte, set()).add(thread)
                    if access.instruction.line in self._lines:
                        self._stored.add(byte)

    @property
    def stored(self) -> int:
        return len(self._stored)

    @property
    def shared(self) -> bool:
        """Whether others access some of these too."""
        return any(len(self._threads[byte]) > 1 for byte in self._stored)


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
