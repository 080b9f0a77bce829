"""Whether the modules of a step are what the optimizer takes them for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..groups.param_groups import ROLES
from ..optimizers.base import StackelbergOptimizer

# what was checked before, by optimizer: weak references to body and head, and groups by what is looked at here
_checked: weakref.WeakKeyDictionary[StackelbergOptimizer, tuple[Any, Any, tuple[int, ...]]] = (
    weakref.WeakKeyDictionary()
)


def check_players(optimizer: Any, body: Any, head: Any) -> None:
    """Raise unless `body` and `head` are the players of an optimizer; the same ones are looked at once.

    Raises:
        TypeError: not one of our optimizers, or not callable.
        ValueError: the optimizer lacks a role; a trained parameter is in a group of the other one.
        RuntimeError: a bare part of a module that DistributedDataParallel wraps.
    """
    if not isinstance(optimizer, StackelbergOptimizer):
        raise TypeError(
            f"optimizer must be a Stackelberg optimizer, got {type(optimizer).__name__}"
        )
    for name, module in (("body", body), ("head", head)):
        if not callable(module):
            raise TypeError(f"{name} must be a module or a callable, got {type(module).__name__}")
    groups = tuple(hash((id(g), g["role"], len(g["params"]))) for g in optimizer.param_groups)
    known = _checked.get(optimizer)
    if known and known[2] == groups and _same(known[0], body) and _same(known[1], head):
        return
    for role in ROLES:
        if all(group["role"] != role for group in optimizer.param_groups):
            raise ValueError(f"the optimizer has no param group of role {role!r}")
    if not any(
        p.requires_grad for g in optimizer.param_groups if g["role"] == "head" for p in g["params"]
    ):
        raise ValueError("the head has no trained parameters")
    roles = {id(p): g["role"] for g in optimizer.param_groups for p in g["params"]}
    modules = {"body": body, "head": head}
    for role, module in modules.items():
        for name, param in _named_parameters(module):
            if roles.get(id(param), role) != role:
                raise ValueError(
                    f"parameter '{name}' of the {role} is in a param group of role {roles[id(param)]!r}"
                )
    _refuse_bare_parts(modules, roles)
    body_ref, head_ref = (
        weakref.ref(m) if isinstance(m, nn.Module) else None for m in (body, head)
    )
    _checked[optimizer] = body_ref, head_ref, groups


def _same(known: weakref.ref[Any] | None, module: Any) -> bool:
    """Whether a module is the one that was looked at; any other callable is, since nothing in it can be seen."""
    is_module = isinstance(module, nn.Module)
    return known() is module if known is not None and is_module else known is None and not is_module


def _named_parameters(module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters() if isinstance(module, nn.Module) else iter(())


def _refuse_bare_parts(modules: dict[str, Any], roles: dict[int, str]) -> None:
    """Raise where DistributedDataParallel wraps something larger than a player, around which the step goes.

    Gradients would reach `.grad` without the reduction, which that wrapper's own forward pass prepares.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    found = _bare_part(modules, roles)
    if found is not None:
        gc.collect()  # of a wrapper that nobody holds any more?
        found = _bare_part(modules, roles)
    if found is not None:
        raise RuntimeError(
            f"the {found[0]} is a bare part of a module that DistributedDataParallel wraps (parameter '{found[1]}'): "
            "its gradients would not be reduced. Wrap body and head each in a DistributedDataParallel of its own"
        )


def _bare_part(modules: dict[str, Any], roles: dict[int, str]) -> tuple[str, str] | None:
    """Role and name of a parameter whose wrapper is not a part of its player, or wraps both players."""
    inside = {
        id(part) for m in modules.values() if isinstance(m, nn.Module) for part in m.modules()
    }
    names = {id(p): (role, name) for role, m in modules.items() for name, p in _named_parameters(m)}
    for wrapper in [o for o in gc.get_objects() if _is_wrapper(o)]:
        params = dict(wrapper.module.named_parameters())
        wraps_both = len({roles[id(p)] for p in params.values() if id(p) in roles}) > 1
        for name, param in params.items():
            if id(wrapper) not in inside and (id(param) in names or wraps_both):
                return names.get(id(param), (roles.get(id(param), "body"), name))
    return None


def _is_wrapper(candidate: Any) -> bool:
    try:
        return isinstance(candidate, DistributedDataParallel)
    except ReferenceError:  # a weak proxy to something gone
        return False
