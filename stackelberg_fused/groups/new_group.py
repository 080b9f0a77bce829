"""A param group that is added: completed and checked, before the dict that was given is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .param_groups import (
    check_hyperparameters,
    check_params,
    complete_group,
    group_label,
    param_label,
    plain_integers,
)


class Members:
    """What an optimizer's groups hold, by identity: a new group is compared with them in time of its own size."""

    def __init__(self) -> None:
        # objects are kept, so that no other one is found under the id of one that is gone
        self._params: dict[int, tuple[Tensor, int]] = {}
        self._rates: dict[int, Tensor] = {}
        self._known = 0

    def follow(self, groups: Sequence[dict[str, Any]]) -> None:
        """Know the groups that were appended since last asked."""
        for index in range(self._known, len(groups)):
            for param in groups[index]["params"]:
                self._params.setdefault(id(param), (param, index))
            lr = groups[index].get("lr")
            if isinstance(lr, Tensor):
                self._rates[id(lr)] = lr
        self._known = len(groups)

    def group_of(self, param: Tensor, groups: Sequence[dict[str, Any]]) -> int | None:
        """The index of the group that holds a parameter."""
        known = self._params.get(id(param))
        if known is None or known[1] >= len(groups):
            return None
        # somebody may have taken it out of its group
        return known[1] if any(param is held for held in groups[known[1]]["params"]) else None

    def hold_rate(self, lr: Any) -> bool:
        """Tell whether a rate is the very tensor that is some group's."""
        return id(lr) in self._rates


def completed_group(
    given: dict[str, Any],
    groups: list[dict[str, Any]],
    members: Members,
    defaults: dict[str, Any],
    head_lr_ratio: float,
) -> dict[str, Any]:
    """A group as it will be.

    Args:
        given: the user's dict; read only.
        groups: the optimizer's so far.
        members: of these groups, or of some of them.

    Raises:
        ValueError, TypeError: names the group or parameter.
    """
    index = len(groups)
    completed = complete_group(given, defaults, head_lr_ratio, index)
    completed.update(split_names(completed["params"], index))
    check_hyperparameters(completed, index, is_new=True)
    check_params(completed, index)
    members.follow(groups)
    _check_beside_others(completed, index, groups, members)
    lr = completed["lr"]
    if isinstance(lr, Tensor) and members.hold_rate(lr) and not lr.requires_grad:
        completed["lr"] = lr.clone()  # schedulers fill it in place
    return completed


def _check_beside_others(
    group: dict[str, Any], index: int, groups: Sequence[dict[str, Any]], members: Members
) -> None:
    """Raise ValueError for a group that does not go with the ones before it."""
    if groups and ("param_names" in group) != ("param_names" in groups[0]):
        raise ValueError(
            f"{group_label(index, group)}: its parameters should be with names if those of the other groups are, "
            "and without if not"
        )
    for position, param in enumerate(group["params"]):
        other = members.group_of(param, groups)
        if other is not None:
            label = param_label(index, group, position)
            raise ValueError(f"{label}: it is already in {group_label(other, groups[other])}")


def fill_in(given: dict[str, Any], completed: dict[str, Any]) -> None:
    """Write what was completed into the user's dict, which torch takes as the group."""
    if not isinstance(given["params"], Tensor):
        names, tensors = completed.get("param_names"), completed["params"]
        given["params"] = list(zip(names, tensors, strict=True)) if names else tensors
    for name, value in completed.items():
        if name != "params":
            given.setdefault(name, value)
    given.update(rule=completed["rule"], lr=completed["lr"], **plain_integers(completed))


def split_names(params: Any, index: int) -> dict[str, Any]:
    """`params` and, for (name, tensor) pairs, `param_names`, from whatever a group may hold."""
    if isinstance(params, (Tensor, set)):
        return {"params": [params] if isinstance(params, Tensor) else params}
    entries = list(params)
    named = [entry for entry in entries if isinstance(entry, tuple)]
    if named and len(named) != len(entries):
        unnamed = next(i for i, entry in enumerate(entries) if not isinstance(entry, tuple))
        raise ValueError(
            f"param group {index}: parameter {unnamed} has no name, others of the group have"
        )
    if not named:
        return {"params": entries}
    return {"params": [tensor for _, tensor in named], "param_names": [name for name, _ in named]}
