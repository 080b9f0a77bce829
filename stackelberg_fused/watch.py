"""Notices that somebody replaced what a dict or a list holds, by identity: no tensor is ever compared.

`csrc/cpu/watch.cpp` is the same class in C++.
"""

from __future__ import annotations

from itertools import chain
from operator import is_
from typing import Any


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

    Raises:
        TypeError: a container is neither.
    """

    def __init__(self, containers: list[Any]) -> None:
        if not all(isinstance(container, (dict, list)) for container in containers):
            raise TypeError("a watch is over dicts and lists")
        self._containers = list(containers)
        self._noted = [_objects(container) for container in containers]

    def changed(self) -> list[int]:
        """The containers that hold other objects than were noted, or in another order; dicts also other keys."""
        return [
            i
            for i, (now, then) in enumerate(
                zip(map(_objects, self._containers), self._noted, strict=True)
            )
            if len(now) != len(then) or not all(map(is_, now, then))
        ]

    def note(self, index: int) -> None:
        """Take what a container holds now for what it should hold."""
        self._noted[index] = _objects(self._containers[index])


try:
    from ._cpu import Watch
except ImportError:
    Watch = PythonWatch
