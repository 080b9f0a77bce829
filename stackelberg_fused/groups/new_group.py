"""A param group that is added: completed and checked, before the dict that was given is touched."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .param_groups import (
    check_hyperparameters,
    check_new_group,
    check_params,
    complete_group,
    plain_integers,
)


def completed_group(
    given: dict[str, Any],
    groups: list[dict[str, Any]],
    defaults: dict[str, Any],
    head_lr_ratio: float,
) -> dict[str, Any]:
    """A group as it will be.

    Args:
        given: the user's dict; read only.
        groups: the optimizer's so far.

    Raises:
        ValueError, TypeError: names the group or parameter.
    """
    index = len(groups)
    completed = complete_group(given, defaults, head_lr_ratio, index)
    completed.update(split_names(completed["params"], index))
    check_hyperparameters(completed, index, is_new=True)
    check_params(completed, index)
    check_new_group(completed, index, groups)
    lr = completed["lr"]
    if (
        isinstance(lr, Tensor)
        and any(lr is group["lr"] for group in groups)
        and not lr.requires_grad
    ):
        completed["lr"] = lr.clone()  # schedulers fill it in place
    return completed


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
