"""Param groups whose rates `find_rates` searches: their names and sizes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..memory.presence import is_uninitialized


def param_groups(found: Iterable[Any]) -> list[dict[str, Any]]:
    """Return groups whose "params" are lists of tensors, or of names and tensors.

    Raises:
        ValueError: there is none, one is no param group, or one is empty.
    """
    groups = []
    for i, group in enumerate(found):
        if not isinstance(group, dict) or "params" not in group:
            raise ValueError(
                'find_rates(): groups must return param groups, each a dict with "params"; '
                f"number {i} is {_said(group)}"
            )
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(params)
        if not params:
            raise ValueError(f"find_rates(): group {i} ({_name(group, i)}) has no parameters")
        groups.append({**group, "params": params})
    if not groups:
        raise ValueError("find_rates() needs at least one group")
    return groups


def unique_names(groups: list[dict[str, Any]], reserved: Iterable[str]) -> list[str]:
    """Return a name for each group, none of them twice."""
    names: list[str] = []
    taken = set(reserved)
    for i, group in enumerate(groups):
        name, number = _name(group, i), i
        while name in taken:
            name, number = f"{_name(group, i)} {number}", number + 1
        taken.add(name)
        names.append(name)
    return names


def elements(groups: list[dict[str, Any]]) -> list[int]:
    """Return the number of elements of each group; a parameter that has no shape yet has none."""
    return [sum(map(_elements, group["params"])) for group in groups]


def _elements(param: Any) -> int:
    tensor = param[1] if isinstance(param, tuple) else param
    return 0 if is_uninitialized(tensor) else int(tensor.numel())


def _name(group: dict[str, Any], i: int) -> str:
    return str(group.get("name") or group.get("role") or f"group {i}")


def _said(group: Any) -> str:
    return 'a dict without "params"' if isinstance(group, dict) else f"a {type(group).__name__}"
