"""One launch of a kernel: blocks, the order in which they run, barriers, and who watches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .accesses import Access, MemoryOperation
from .approximate import Unit
from .gang import Gang
from .kernel import Barrier, Fence, Kernel, WarpBarrier
from .lanes import WARP, Fault, Lanes, Mask
from .memory import Memory, SharedMemory
from .warp import WarpOperation

MOST_INSTRUCTIONS = 10_000_000  # of a launch; a kernel that takes more does not end


class Observer(Protocol):
    """Is told in which order things happen."""

    def access(self, access: Access, lanes: Lanes) -> None:
        """Some lanes access memory by one instruction."""

    def fence(self, fence: Fence, lanes: Lanes, active: NDArray[np.intp]) -> None:
        """Some lanes execute a fence."""

    def barrier(self, block: int) -> None:
        """All threads of a block pass a barrier."""

    def warps(
        self, operation: WarpOperation | WarpBarrier, lanes: Lanes, active: NDArray[np.intp]
    ) -> None:
        """Whole warps execute an instruction of a warp."""


@dataclass(frozen=True)
class Schedule:
    """Which threads run together, and in which order.

    Attributes:
        together: threads of so many blocks are one array; 0: each warp is an array of its own.
        seed: arrays change over at random before each access that others could notice; None: one after another.
        backwards: the last array is the first to run, without a seed.
    """

    together: int = 32
    seed: int | None = None
    backwards: bool = False


TOGETHER = Schedule()
SERIAL = Schedule(together=1)
BACKWARDS = Schedule(together=1, backwards=True)


def interleaved(seed: int, *, warps: bool = False) -> Schedule:
    """Blocks, or warps, take turns at random."""
    return Schedule(0 if warps else 1, seed)


class Launch:
    """A launch.

    Attributes:
        kernel: what runs.
        parameters: the bytes of the kernel's parameters.
        memory: what it may reach.
        shared: the shared memory of all blocks.
        unit: gives results of approximate instructions.
        switches: gangs change over while they run.
        barriers_passed: by block.
        instructions: how many were run, for groups of threads.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: int,
        parameters: bytes,
        memory: Memory,
        *,
        threads: int | None = None,
        dynamic_shared: int = 0,
        unit: Unit | None = None,
        schedule: Schedule = TOGETHER,
        observers: Sequence[Observer] = (),
    ) -> None:
        """Prepare a launch.

        Args:
            kernel: the kernel.
            grid: number of blocks.
            parameters: as the kernel's text lays them out.
            memory: what it may reach.
            threads: of a block, a multiple of the warp's; None: as the kernel says.
            dynamic_shared: bytes of shared memory beyond what the kernel declares.
            unit: for approximate instructions; None: the nearest results.
            schedule: which blocks run together.
            observers: are told what happens.

        Raises:
            ValueError: parameters or threads are not what the kernel declares.
        """
        threads = kernel.text.threads if threads is None else threads
        if threads is None or threads % WARP or threads != (kernel.text.threads or threads):
            raise ValueError(
                f"{threads} threads for {kernel.name}, which is for {kernel.text.threads}"
            )
        if len(parameters) != kernel.text.parameter_bytes:
            raise ValueError(
                f"{len(parameters)} bytes of parameters, not {kernel.text.parameter_bytes}"
            )
        self.kernel, self.grid, self.threads = kernel, grid, threads
        self.parameters, self.memory, self.unit = parameters, memory, unit or Unit()
        self.shared = SharedMemory(grid, kernel.text.shared_bytes + dynamic_shared)
        self.barriers_passed = np.zeros(grid, np.int64)
        self.instructions = 0
        self.switches = schedule.seed is not None
        self._schedule, self._observers = schedule, observers
        self._arrived = np.zeros(grid, np.int64)
        self._barrier = np.zeros(grid, np.int64)

    def run(self) -> Launch:
        """Run all blocks.

        Raises:
            Fault: an access is not allowed, something undefined decides or is left in global memory, or threads wait
                for ever.
        """
        with np.errstate(all="ignore"):
            gangs = [Gang(self, lanes) for lanes in self._arrays()]
            if self.switches:
                self._interleave(gangs)
            else:
                for gang in gangs[::-1] if self._schedule.backwards else gangs:
                    for _ in gang.run():
                        pass
            if stuck := [place for gang in gangs for place in gang.waits_at()]:
                raise Fault(
                    f"{self.kernel.name}: threads wait for ever at {'; '.join(sorted(set(stuck)))}"
                )
        self.memory.check_defined()
        return self

    def _arrays(self) -> Iterator[Lanes]:
        numbers = np.arange(self.grid * self.threads)
        size = self._schedule.together * self.threads or WARP
        for start in range(0, len(numbers), size):
            blocks, threads = np.divmod(numbers[start : start + size], self.threads)
            yield Lanes(blocks, threads, self.threads, self.grid, len(self.kernel.registers.sizes))

    def _interleave(self, gangs: list[Gang]) -> None:
        random = np.random.default_rng(self._schedule.seed)
        runs = {gang: gang.run() for gang in gangs}
        idle = 0  # gangs in a row that could not go on
        while runs and idle < 64 * len(gangs):
            gang = list(runs)[random.integers(len(runs))]
            before = self.instructions
            for _ in range(random.integers(1, 8)):
                if next(runs[gang], runs) is runs:
                    # it has ended, or waits for threads of other gangs
                    if gang.is_over:
                        del runs[gang]
                    else:
                        runs[gang] = gang.run()
                    break
            idle = idle + 1 if self.instructions == before else 0

    def may_switch_before(self, access: MemoryOperation) -> bool:
        """Whether gangs may change over: others could notice when it happens, of shared memory only other warps."""
        if not self.switches:
            return False
        return access.is_visible or (access.is_shared and not self._schedule.together)

    def count(self) -> None:
        """Count an instruction.

        Raises:
            Fault: there have been too many.
        """
        self.instructions += 1
        if self.instructions > MOST_INSTRUCTIONS:
            raise Fault("the kernel does not end")

    def arrive(self, barrier: Barrier, blocks: NDArray[np.int64]) -> None:
        """Threads of these blocks, one entry each, arrive at a barrier."""
        for block, count in zip(*np.unique(blocks, return_counts=True), strict=True):
            if self._arrived[block] and self._barrier[block] != barrier.number:
                raise Fault(f"threads of block {block} wait at different barriers")
            self._barrier[block] = barrier.number
            self._arrived[block] += count
            if self._arrived[block] == self.threads:
                self._arrived[block] = 0
                self.barriers_passed[block] += 1
                for observer in self._observers:
                    observer.barrier(int(block))

    def observe(self, access: Access, lanes: Lanes) -> None:
        """Tell of an access."""
        for observer in self._observers:
            observer.access(access, lanes)

    def fence(self, fence: Fence, lanes: Lanes, mask: Mask | None) -> None:
        """Tell of a fence."""
        for observer in self._observers:
            observer.fence(fence, lanes, _numbers(lanes, mask))

    def order_warps(
        self, operation: WarpOperation | WarpBarrier, lanes: Lanes, mask: Mask | None
    ) -> None:
        """Tell of an instruction of whole warps."""
        for observer in self._observers:
            observer.warps(operation, lanes, _numbers(lanes, mask))


def _numbers(lanes: Lanes, mask: Mask | None) -> NDArray[np.intp]:
    return np.arange(lanes.count) if mask is None else np.flatnonzero(mask)
