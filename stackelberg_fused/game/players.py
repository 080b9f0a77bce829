"""Checks that the body and the head of a step are the two players of the optimizer and share no parameter."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..groups.param_groups import ROLES
from ..optimizers.base import StackelbergOptimizer
from ..torch_compat import pytree, version_of
from .player_gradients import graph_of

# the last check that passed, by optimizer: weak references to body and head, and a hash of each param group
_checked: weakref.WeakKeyDictionary[StackelbergOptimizer, tuple[Any, Any, tuple[int, ...]]] = (
    weakref.WeakKeyDictionary()
)
# by optimizer: the bodies whose graph was searched for parameters of the head, at most MOST_SEARCHED
_searched: weakref.WeakKeyDictionary[StackelbergOptimizer, set[Any]] = weakref.WeakKeyDictionary()
# by optimizer: the heads, each with its loss function, whose loss was seen to depend on the features
_using_features: weakref.WeakKeyDictionary[StackelbergOptimizer, set[Any]] = (
    weakref.WeakKeyDictionary()
)
MOST_SEARCHED = 64


def _is_ours(optimizer: Any) -> bool:
    return isinstance(optimizer, StackelbergOptimizer)


def _attributes(wrapper: Any) -> list[tuple[str, Any]]:
    """What an object holds, by names that its user may spell."""
    held = getattr(wrapper, "__dict__", {})
    return [(name, value) for name, value in held.items() if not name.startswith("_")]


def check_players(optimizer: Any, body: Any, head: Any) -> None:
    """Raise unless `body` and `head` are the players of an optimizer. A repeated check of the same ones is skipped.

    Raises:
        TypeError: `optimizer` is not a Stackelberg optimizer, or `body` or `head` is not callable.
        ValueError: the optimizer lacks a role, the head has no trained parameter, or a parameter is in a group of the
            other role.
        RuntimeError: DistributedDataParallel wraps a larger module that contains `body` or `head`.
    """
    if not _is_ours(optimizer):
        inside = [name for name, held in _attributes(optimizer) if _is_ours(held)]
        advice = f"; pass what it wraps, its .{inside[0]}" if inside else ""
        raise TypeError(
            f"optimizer must be a Stackelberg optimizer, got {type(optimizer).__name__}{advice}"
        )
    for name, module in (("body", body), ("head", head)):
        if not callable(module):
            raise TypeError(f"{name} must be a module or a callable, got {type(module).__name__}")
    groups = tuple(hash((id(g), g["role"], len(g["params"]))) for g in optimizer.param_groups)
    checked = _checked.get(optimizer)
    if (
        checked
        and checked[2] == groups
        and _is_same(checked[0], body)
        and _is_same(checked[1], head)
    ):
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
    _refuse_wrapped_parts(modules, roles)
    body_ref, head_ref = (
        weakref.ref(m) if isinstance(m, nn.Module) else None for m in (body, head)
    )
    _checked[optimizer] = body_ref, head_ref, groups


def _is_same(checked: weakref.ref[Any] | None, module: Any) -> bool:
    """Tell whether `module` is the module that was checked. All other callables count as the same one."""
    is_module = isinstance(module, nn.Module)
    if checked is not None and is_module:
        return checked() is module
    return checked is None and not is_module


def _named_parameters(module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters() if isinstance(module, nn.Module) else iter(())


def _refuse_wrapped_parts(modules: dict[str, Any], roles: dict[int, str]) -> None:
    """Raise if DistributedDataParallel wraps more than one player, and the step gets the bare player inside.

    The forward pass of the wrapper prepares the reduction. Without it, gradients reach `.grad` unreduced.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    part = _wrapped_part(modules, roles)
    if part is not None:
        gc.collect()  # the wrapper may be garbage
        part = _wrapped_part(modules, roles)
    if part is not None:
        raise RuntimeError(
            f"the {part[0]} is a bare part of a module that DistributedDataParallel wraps (parameter '{part[1]}'): "
            "its gradients would not be reduced. Wrap body and head each in a DistributedDataParallel of its own"
        )


def _wrapped_part(modules: dict[str, Any], roles: dict[int, str]) -> tuple[str, str] | None:
    """Return role and name of a parameter whose wrapper is outside of its player, or wraps both players."""
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
    except ReferenceError:  # a weak proxy to a dead object
        return False


def refuse_head_in_graph(optimizer: StackelbergOptimizer, body: Any, features: list[Any]) -> None:
    """Raise if the features depend on a parameter of the head: it could not move and then serve the body's gradient.

    The graph of the body's first forward pass is searched, because a callable shows its parameters nowhere else.

    Args:
        optimizer: the optimizer of both players.
        body: the body; a repeated search of the same one is skipped.
        features: its output for each microbatch: tensors in any nested containers.
    """
    groups = [(id(g), g["role"], len(g["params"])) for g in optimizer.param_groups]
    searched = _searched.setdefault(optimizer, set())
    key = (*_identity(body), *groups)
    if key in searched:
        return
    head_names = {
        id(p): name
        for g in optimizer.param_groups
        if g["role"] == "head"
        for name, p in _parameter_labels(g)
    }
    leaves = [leaf for part in features for leaf in pytree.tree_leaves(part)]
    for node in graph_of(leaves):
        variable = getattr(node, "variable", None)
        if id(variable) in head_names:
            raise ValueError(
                f"{head_names[id(variable)]} of the head is used by the body too: take mode='alternating', which "
                "evaluates the model as a whole"
            )
    _remember(searched, key)


def known_to_use_features(optimizer: StackelbergOptimizer, head: Any, loss_fn: Any) -> bool:
    """Tell whether an earlier step saw that the loss of this head depends on the features."""
    return (*_identity(head), *_identity(loss_fn)) in _using_features.get(optimizer, ())


def note_use_of_features(optimizer: StackelbergOptimizer, head: Any, loss_fn: Any) -> None:
    """Have `known_to_use_features` say so from now on."""
    known = _using_features.setdefault(optimizer, set())
    _remember(known, (*_identity(head), *_identity(loss_fn)))


def _identity(function: Any) -> tuple[Any, ...]:
    """The same for each of the lambdas or bound methods that a line of code makes anew in every step."""
    code = getattr(getattr(function, "__func__", function), "__code__", id(function))
    return id(getattr(function, "__self__", None)), code


def _remember(known: set[Any], key: Any) -> None:
    if len(known) >= MOST_SEARCHED:  # a new functools.partial in every step would fill it
        known.clear()
    known.add(key)


def body_gradients(optimizer: StackelbergOptimizer) -> list[tuple[Tensor, Any, int]]:
    """Return the body's parameters, each with its `.grad` and the version counter of that (-1 for None)."""
    params = (p for g in optimizer.param_groups if g["role"] == "body" for p in g["params"])
    return [(p, p.grad, -1 if p.grad is None else version_of(p.grad)) for p in params]


def refuse_shared_parameters(
    optimizer: StackelbergOptimizer, before: list[tuple[Tensor, Any, int]]
) -> None:
    """Raise if the head's backward pass wrote a gradient of the body: the body's own gradient would be incomplete.

    Args:
        optimizer: the optimizer of both players.
        before: `body_gradients` before the head's backward pass.
    """
    for param, grad, version in before:
        now = param.grad
        if now is not grad or (now is not None and version_of(now) != version):
            names = {id(p): n for g in optimizer.param_groups for n, p in _parameter_labels(g)}
            raise RuntimeError(
                f"{names[id(param)]} of the body is used by the head or the loss too: take mode='alternating', which "
                "evaluates the model as a whole"
            )


def _parameter_labels(group: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for i, param in enumerate(group["params"]):
        names = group.get("param_names")
        yield f"parameter {names[i]!r}" if names else f"parameter {i}", param
