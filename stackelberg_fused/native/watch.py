"""Notices that somebody replaced what a dict or a list holds, by identity: no tensor is ever compared.

`csrc/cpu/watch.cpp` is the same class in C++.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

import numpy as np

from .tables import LARGEST_FLOAT

try:
    from .._cpu import Lookout as NativeLookout
    from .._cpu import Watch as NativeWatch
except ImportError:
    NativeWatch = NativeLookout = None


def _objects(container: dict[Any, Any] | list[Any]) -> list[Any]:
    return (
        list(chain.from_iterable(container.items()))
        if isinstance(container, dict)
        else [*container]
    )


class PythonWatch:
    """What dicts and lists hold, noted at construction and compared later.

    Args:
        containers: dicts and lists.
        rates: float64 array [containers]: where a dict's "lr" is written when it alone was replaced, by another float
            (of that very type) >= 0 that is finite in float32; such a dict counts as unchanged.

    Raises:
        TypeError: a container is neither.
    """

    def __init__(self, containers: list[Any], rates: np.ndarray | None = None) -> None:
        if not all(isinstance(container, (dict, list)) for container in containers):
            raise TypeError("a watch is over dicts and lists")
        self._containers = list(containers)
        self._noted = [_objects(container) for container in containers]
        self._rates = rates
        self._took_over = False

    def changed(self) -> list[int]:
        """The containers that hold other objects than were noted, or in another order; dicts also other keys.

        New rates are taken over on the way.
        """
        return [i for i in range(len(self._containers)) if not self._same(i)]

    def note(self, index: int) -> None:
        """Take what a container holds now for what it should hold."""
        self._noted[index] = _objects(self._containers[index])

    def took_over(self) -> bool:
        """Whether a rate was written since this was last asked."""
        took_over, self._took_over = self._took_over, False
        return took_over

    def _same(self, index: int) -> bool:
        now, then = _objects(self._containers[index]), self._noted[index]
        if len(now) != len(then):
            return False
        replaced = [i for i, same in enumerate(map(is_, now, then)) if not same]
        if not replaced:
            return True
        at = replaced[0]
        is_rate = isinstance(self._containers[index], dict) and at % 2 and now[at - 1] == "lr"
        if self._rates is None or len(replaced) > 1 or not is_rate:
            return False
        if not (type(now[at]) is float and 0.0 <= now[at] <= LARGEST_FLOAT):
            return False
        self._rates[index] = then[at] = now[at]
        self._took_over = True
        return True


def make_watch(containers: list[Any], rates: np.ndarray | None = None) -> Any:
    """The native `Watch` where there is one, else the one above."""
    if NativeWatch is None:
        return PythonWatch(containers, rates)
    if rates is None:
        return NativeWatch(containers)
    return NativeWatch(containers, rates.ctypes.data, rates.strides[0])


class PythonLookout:
    """Watches, and `Places` of `stackelberg_fused.native.reader`, asked for whether any of them has changed."""

    def __init__(self, watches: list[Any], places: list[Any]) -> None:
        self._watches, self._places = watches, places

    def is_unchanged(self) -> bool:
        """False where somebody has to look closer; new rates are taken over, as a watch does."""
        changed = [watch.changed() for watch in self._watches]
        return not any(changed) and not any(places.moved() for places in self._places)


def make_lookout(watches: list[Any], places: list[Any]) -> Any:
    """The native `Lookout` where all that it looks through is native, else the one above."""
    native = [type(each).__module__.endswith("_cpu") for each in (*watches, *places)]
    return (NativeLookout if native and all(native) else PythonLookout)(watches, places)
