"""Notices that somebody replaced what a dict or a list holds, by identity: no tensor is ever compared.

`csrc/cpu/container_snapshot.cpp` is the same class in C++.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any

import numpy as np
from torch import Tensor

from .tables import LARGEST_FLOAT
from .tensor_abi import tensor_abi

try:
    from .._cpu import AddressSnapshot as NativeAddressSnapshot
    from .._cpu import ChangeDetector as NativeChangeDetector
    from .._cpu import ContainerSnapshot as NativeContainerSnapshot
except ImportError:
    NativeContainerSnapshot = NativeAddressSnapshot = NativeChangeDetector = None


def _objects(container: dict[Any, Any] | list[Any]) -> list[Any]:
    return (
        list(chain.from_iterable(container.items()))
        if isinstance(container, dict)
        else [*container]
    )


class PythonContainerSnapshot:
    """Notes what dicts and lists hold, at construction, and compares later.

    Args:
        containers: dicts and lists.
        rates: float64 array [containers]: where a dict's "lr" is written when it alone was replaced, by another float
            (of that very type) >= 0 that is finite in float32; such a dict counts as unchanged.

    Raises:
        TypeError: a container is neither.
    """

    def __init__(self, containers: list[Any], rates: np.ndarray | None = None) -> None:
        if not all(isinstance(container, (dict, list)) for container in containers):
            raise TypeError("a snapshot is of dicts and lists")
        self._containers = list(containers)
        self._noted = [_objects(container) for container in containers]
        self._rates = rates
        self._took_over = False

    def changed(self) -> list[int]:
        """Return the containers that hold other objects than were noted, or in another order; dicts also other keys.

        New rates are taken over on the way.
        """
        return [i for i in range(len(self._containers)) if not self._same(i)]

    def note(self, index: int) -> None:
        """Take what a container holds now for what it should hold."""
        self._noted[index] = _objects(self._containers[index])

    def took_over(self) -> bool:
        """Tell whether a rate was written since this was last asked."""
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


def make_container_snapshot(containers: list[Any], rates: np.ndarray | None = None) -> Any:
    """The native `ContainerSnapshot` where there is one, else the one above."""
    if NativeContainerSnapshot is None:
        return PythonContainerSnapshot(containers, rates)
    if rates is None:
        return NativeContainerSnapshot(containers)
    return NativeContainerSnapshot(containers, rates.ctypes.data, rates.strides[0])


class PythonAddressSnapshot:
    """Notes where tensors lie at construction, and notices one whose memory was exchanged (`state.data = ...`)."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._addresses = [tensor.data_ptr() for tensor in tensors]

    def moved(self) -> bool:
        """Tell whether any of them lies elsewhere now."""
        return [tensor.data_ptr() for tensor in self._tensors] != self._addresses


def make_address_snapshot(tensors: list[Tensor]) -> Any:
    """The native `AddressSnapshot` where it can read this torch, else the one above."""
    abi = tensor_abi()
    return PythonAddressSnapshot(tensors) if abi is None else NativeAddressSnapshot(tensors, abi)


class PythonChangeDetector:
    """Asks container and address snapshots whether any of them has changed."""

    def __init__(self, containers: list[Any], addresses: list[Any]) -> None:
        self._containers, self._addresses = containers, addresses

    def is_unchanged(self) -> bool:
        """False where somebody has to look closer; new rates are taken over, as a container snapshot does."""
        changed = [snapshot.changed() for snapshot in self._containers]
        return not any(changed) and not any(each.moved() for each in self._addresses)


def make_change_detector(containers: list[Any], addresses: list[Any]) -> Any:
    """The native `ChangeDetector` where all that it looks through is native, else the one above."""
    native = [type(each).__module__.endswith("_cpu") for each in (*containers, *addresses)]
    return (NativeChangeDetector if native and all(native) else PythonChangeDetector)(
        containers, addresses
    )
