"""Param groups: defaults, roles, rates, and every check that can be made before the first step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..memory.presence import is_fake, is_uninitialized
from ..native.tables import LARGEST_FLOAT
from .constraints import as_constraint
from .float32_state import name_of
from .rules import HYPERPARAMETERS, as_integer, as_number, is_integer
from .schemes import check_scheme, check_scheme_names

ROLES = ("body", "head")

# What torch's namesake would assume where neither the group nor the constructor says anything.
RULE_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
    "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
}
RULE_DEFAULTS["adamw"] = {**RULE_DEFAULTS["adam"], "cautious": False}
# settings that the constructor takes as one value or as a dict by role, and what they are where that says nothing
BY_ROLE = {
    "update_every": 1,
    "ema_decay": None,
    "constraint": None,
    "master": None,
    "state_dtype": None,
    "float32_state": "vectors",
}
_FLAGS = (
    "maximize",
    "amsgrad",
    "nesterov",
    "capturable",
    "differentiable",
    "decoupled_weight_decay",
)
LONGEST_WAIT = 2**20  # steps; counted in float32, twice


def group_label(index: int, group: dict[str, Any]) -> str:
    """The name of a group in errors."""
    return f"param group {index} ({group.get('role', 'body')})"


def param_label(index: int, group: dict[str, Any], position: int) -> str:
    """The name of a parameter in errors: its own, when known, and its group's."""
    names = group.get("param_names") or ()
    name = f"parameter '{names[position]}'" if position < len(names) else f"parameter {position}"
    return f"{name} of {group_label(index, group)}"


def complete_group(
    group: dict[str, Any], defaults: dict[str, Any], head_lr_ratio: float, index: int
) -> dict[str, Any]:
    """The settings that a group leaves open: role, rule, rate, and its rule's own.

    A group's rate is its own `lr` if it has one, else `lr` for body and `lr * head_lr_ratio` for head.
    """
    role = group.get("role", "body")
    if not _is_one_of(role, ROLES):
        raise ValueError(f"param group {index}: unknown role {role!r}, expected 'body' or 'head'")
    rule = group.get("rule", defaults["rule"])
    if "rule" not in group and rule != "sgd" and "decoupled_weight_decay" in group:
        rule = "adamw" if group["decoupled_weight_decay"] else "adam"
    if not _is_one_of(rule, HYPERPARAMETERS):
        known = ", ".join(map(repr, HYPERPARAMETERS))
        raise ValueError(f"{group_label(index, group)}: unknown rule {rule!r}, expected {known}")
    completed = {**RULE_DEFAULTS[rule], **defaults, **group, "role": role, "rule": rule}
    if rule != "adamw" and "cautious" not in group and "cautious" in completed:
        completed["cautious"] = False  # the constructor says it of its AdamW groups
    for name in BY_ROLE:
        if name not in group and isinstance(completed[name], dict):
            completed[name] = completed[name].get(role, BY_ROLE[name])
    completed.update(plain_integers(completed))
    state_dtype = completed["state_dtype"]
    if isinstance(state_dtype, torch.dtype):  # plain values are what state dicts are of
        completed["state_dtype"] = str(state_dtype).removeprefix("torch.")
    if "lr" not in group and role == "head":
        _number(group_label(index, group), "lr", defaults["lr"])
        completed["lr"] = defaults["lr"] * head_lr_ratio
    if "decoupled_weight_decay" not in group and (
        rule != "sgd" or "decoupled_weight_decay" in defaults
    ):
        completed["decoupled_weight_decay"] = rule == "adamw"  # SGD's is coupled
    return completed


def _is_one_of(value: Any, known: Collection[str]) -> bool:
    """Tell whether a value is one of these strings; it may be anything, as an array, which has no truth value."""
    return isinstance(value, str) and value in known


def _number(label: str, name: str, value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"{label}: {name} must have one element, got shape {tuple(value.shape)}")
    try:
        # float() would take a string or a Decimal, the rules would not
        if not isinstance(value, (Real, np.ndarray, Tensor)):
            raise TypeError
        return as_number(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{label}: {name} must be a number, got {value!r}") from None


def at_least_zero(label: str, name: str, value: Any) -> float:
    """A finite number >= 0, or ValueError or TypeError."""
    number = _number(label, name, value)
    if not 0.0 <= number <= LARGEST_FLOAT:
        raise ValueError(f"{label}: invalid {name} {value!r}, must be >= 0 and finite in float32")
    return number


def _check_setting(label: str, name: str, value: Any, is_new: bool) -> float:
    """A number that is torch's to choose: >= 0 and finite in a new group, any but NaN where somebody edited it."""
    if is_new:
        return at_least_zero(label, name, value)
    number = _number(label, name, value)
    # torch refuses numbers that float32 turns into infinities, too, but no infinities
    if not (abs(number) <= LARGEST_FLOAT or math.isinf(number)):
        raise ValueError(
            f"{label}: invalid {name} {value!r}, must be a number that is in the range of float32, or infinite"
        )
    return number


def _check_rate(label: str, lr: Any, is_new: bool) -> None:
    if not isinstance(lr, Tensor) or lr.device.type == "cpu":
        _check_setting(label, "lr", lr, is_new)
        return
    # its value is left where it is: reading it would wait for the device
    if lr.numel() != 1:
        raise ValueError(f"{label}: lr must have one element, got shape {tuple(lr.shape)}")
    if lr.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{label}: lr on {lr.device} must be float32 or float64, got {lr.dtype}")


def check_hyperparameters(group: dict[str, Any], index: int, is_new: bool = False) -> None:
    """Raise ValueError or TypeError, naming the group, for hyperparameters that no rule accepts.

    Args:
        is_new: the group is given to the optimizer now. As in torch, that is when signs and the like are checked:
            afterwards a schedule may cross zero.
    """
    label = group_label(index, group)
    if not _is_one_of(group.get("role"), ROLES):
        raise ValueError(f"{label}: unknown role, expected 'body' or 'head'")
    if not _is_one_of(group.get("rule"), HYPERPARAMETERS):
        raise ValueError(f"{label}: unknown rule {group.get('rule')!r}")
    missing = [name for name in HYPERPARAMETERS[group["rule"]] if name not in group]
    if missing:
        raise ValueError(f"{label}: rule {group['rule']!r} needs {', '.join(missing)}")
    _check_flags(label, group)
    _check_rate(label, group["lr"], is_new)
    _check_setting(label, "weight_decay", group["weight_decay"], is_new)
    _check_average_and_turns(label, group)
    _check_constraint(label, group)
    check_scheme_names(label, group)
    _check_cautious(label, group)
    if group["rule"] == "sgd":
        momentum = _check_setting(label, "momentum", group["momentum"], is_new)
        dampening = _check_setting(label, "dampening", group["dampening"], is_new=False)
        if is_new and group["nesterov"] and (momentum == 0 or dampening != 0):
            raise ValueError(f"{label}: nesterov requires a momentum and zero dampening")
        return
    if bool(group.get("decoupled_weight_decay", group["rule"] == "adamw")) != (
        group["rule"] == "adamw"
    ):
        raise ValueError(
            f"{label}: rule {group['rule']!r} and decoupled_weight_decay={group['decoupled_weight_decay']!r} "
            "contradict each other"
        )
    _check_setting(label, "eps", group["eps"], is_new)
    betas = group["betas"]
    if not _is_pair(betas):
        raise ValueError(f"{label}: betas must be a pair, got {betas!r}")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError(f"{label}: betas must be either both floats or both tensors")
    for position, beta in enumerate(betas):
        if not 0.0 <= _number(label, f"betas[{position}]", beta) < 1.0:
            raise ValueError(f"{label}: invalid betas[{position}] {beta!r}, must be in [0, 1)")


def _check_flags(label: str, group: dict[str, Any]) -> None:
    for name in _FLAGS:
        try:
            bool(group.get(name))
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{label}: {name} must be a bool, got {group[name]!r}") from None


def _is_pair(value: Any) -> bool:
    """Tell whether something is a sequence of two: a tuple, an array, a list of a configuration."""
    is_sequence = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    is_other = isinstance(value, (str, bytes, Mapping)) or (
        isinstance(value, Tensor) and not value.ndim
    )
    return is_sequence and not is_other and len(value) == 2


def _check_cautious(label: str, group: dict[str, Any]) -> None:
    cautious = group.get("cautious", False)
    if not isinstance(cautious, bool):
        raise TypeError(f"{label}: cautious must be a bool, got {cautious!r}")
    if cautious and group["rule"] != "adamw":
        raise ValueError(
            f"{label}: cautious goes with rule 'adamw' only, not with {group['rule']!r}"
        )


def _check_average_and_turns(label: str, group: dict[str, Any]) -> None:
    decay = group["ema_decay"]
    if isinstance(decay, bool):
        raise TypeError(f"{label}: ema_decay must be None or a number, got {decay!r}")
    if decay is not None and not 0.0 <= _number(label, "ema_decay", decay) <= 1.0:
        raise ValueError(f"{label}: invalid ema_decay {decay!r}, must be None or in [0, 1]")
    every, grads = group["update_every"], group["update_every_grads"]
    if not is_integer(every):
        raise TypeError(f"{label}: update_every must be an int, got {every!r}")
    if not 1 <= as_integer(every) <= LONGEST_WAIT:
        raise ValueError(
            f"{label}: invalid update_every {every}, must be >= 1 and <= {LONGEST_WAIT}"
        )
    if not _is_one_of(grads, ("latest", "mean")):
        raise ValueError(
            f"{label}: unknown update_every_grads {grads!r}, expected 'latest' or 'mean'"
        )
    if group.get("differentiable") and (as_integer(every) > 1 or decay is not None):
        raise ValueError(
            f"{label}: differentiable=True goes with neither update_every nor ema_decay"
        )


def _check_constraint(label: str, group: dict[str, Any]) -> None:
    try:
        constraint = as_constraint(group["constraint"])
    except (TypeError, ValueError) as error:
        raise type(error)(f"{label}: {error}") from None
    if constraint is None:
        return
    if group.get("differentiable"):
        raise ValueError(f"{label}: differentiable=True does not go with a constraint")
    for dtype in {p.dtype for p in group["params"] if isinstance(p, Tensor)}:
        if not dtype.is_floating_point:
            continue
        try:
            constraint.check_dtype(dtype)
        except ValueError as error:
            raise ValueError(f"{label}: {error}") from None


def plain_integers(group: dict[str, Any]) -> dict[str, int]:
    """The settings of a group that are integers, as Python's: what state dicts are of."""
    names = ("update_every", "seed")
    return {n: as_integer(group[n]) for n in names if n in group and is_integer(group[n])}


def copy_by_role(defaults: dict[str, Any]) -> dict[str, Any]:
    """Defaults with settings by role in dicts of their own; ValueError for a role that there is not."""
    defaults = dict(defaults)
    for name in BY_ROLE:
        if not isinstance(defaults[name], Mapping):
            continue
        defaults[name] = value = dict(defaults[name])
        unknown = [key for key in value if key not in ROLES]
        if unknown:
            raise ValueError(f"{name}: unknown role {unknown[0]!r}, expected 'body' or 'head'")
    return defaults


def as_betas(value: Any) -> Any:
    """A pair as torch's constructors keep it; anything else as it is, to be refused by name."""
    return tuple(value) if _is_pair(value) else value


def check_ratio(value: Any) -> float:
    ratio = _number("optimizer", "head_lr_ratio", value)
    if not 0.0 < ratio < math.inf:
        raise ValueError(f"optimizer: invalid head_lr_ratio {value!r}, must be finite and > 0")
    return ratio


def check_params_list(group: dict[str, Any], index: int) -> None:
    """Raise for a group that somebody edited and whose parameters are no list of tensors any more."""
    if not isinstance(group, dict):
        raise TypeError(f"param group {index}: expected a dict, got {type(group).__name__}")
    params = group.get("params")
    if not isinstance(params, (list, tuple)):
        raise TypeError(
            f"{group_label(index, group)}: params must be a list of tensors, got {torch.typename(params)}"
        )


def check_params(group: dict[str, Any], index: int) -> None:
    """Raise for parameters that no rule can update."""
    for position, param in enumerate(group["params"]):
        label = param_label(index, group, position)
        if not isinstance(param, Tensor):
            raise TypeError(f"{label}: expected a tensor, got {torch.typename(param)}")
        if is_uninitialized(param):
            continue  # looked at once it has a shape
        frozen = not param.requires_grad and param.grad is None
        if param.layout is not torch.strided and not frozen:
            raise TypeError(f"{label}: {param.layout} parameters are not supported")
        if not param.is_floating_point() and not frozen:
            raise TypeError(f"{label}: parameters must be real floating point, got {param.dtype}")
        if not frozen:
            check_scheme(label, group, param, name_of(group, position))
            _check_presence(label, param)
        if not (param.is_leaf or param.retains_grad or group.get("differentiable")):
            raise ValueError(
                f"{label}: can't optimize a non-leaf tensor, autograd keeps no gradient for it"
            )


def _check_presence(label: str, param: Tensor) -> None:
    """Raise ValueError or TypeError for a trained parameter that nothing can update; wrappers can be, by operations."""
    if param.is_meta:
        raise ValueError(f"{label}: lives on the meta device, it has no memory to update")
    if param.is_nested:  # jagged ones have a layout of their own
        raise TypeError(f"{label}: nested parameters are not supported")
    if is_fake(param):
        raise ValueError(f"{label}: is a fake tensor, it has no memory to update")
