"""Launches of the library's backends, executed by the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from .approximate import Unit
from .caught_launch import CaughtLaunch
from .kernel import Kernel
from .launch import TOGETHER, Launch, Observer, Schedule
from .memory import Memory
from .parser import read


@lru_cache(maxsize=64)
def _module(text: str) -> dict:
    return read(text)


@lru_cache(maxsize=128)
def kernel_of(text: str, name: str) -> Kernel:
    """A kernel of a module, decoded once."""
    return Kernel(_module(text)[name])


class Interpreted:
    """An executor of caught launches.

    Attributes:
        launches: those that were run, in order.
    """

    def __init__(
        self,
        schedule: Schedule = TOGETHER,
        unit: Unit | None = None,
        observers: Callable[[CaughtLaunch, Memory], Sequence[Observer]] = lambda caught, memory: (),
        change: Callable[[CaughtLaunch], Kernel] = lambda caught: kernel_of(
            caught.ptx, caught.kernel
        ),
    ) -> None:
        """Run launches so.

        Args:
            schedule: which blocks run together, in which order.
            unit: for approximate instructions.
            observers: makes those of a launch.
            change: gives the kernel to run; mutations come in here.
        """
        self._schedule, self._unit, self._observers, self._kernel = (
            schedule,
            unit,
            observers,
            change,
        )
        self.launches: list[Launch] = []

    def __call__(self, caught: CaughtLaunch) -> None:
        memory = Memory()
        for region in caught.regions:
            memory.add(region.name, region.address, region.nbytes, is_writable=region.writable)
        launch = Launch(
            self._kernel(caught),
            caught.grid,
            caught.params,
            memory,
            threads=caught.threads,
            dynamic_shared=caught.dynamic_shared,
            unit=self._unit,
            schedule=self._schedule,
            observers=self._observers(caught, memory),
        )
        self.launches.append(launch.run())
