"""Param groups: defaults, roles, rates, and every check that can be made before the first step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rules import SETTINGS, as_number
from .sharding import local_tensor
from .tables import LARGEST_FLOAT
from .warning import warn_caller

ROLES = ("body", "head")

# What torch's namesake would assume where neither the group nor the constructor says anything.
RULE_DEFAULTS: dict[str, dict[str, Any]] = {
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False},
    "sgd": {"momentum": 0.0, "dampening": 0.0, "nesterov": False},
}
RULE_DEFAULTS["adamw"] = RULE_DEFAULTS["adam"]
# settings that the constructor takes as one value or as a dict by role, and what they are where that says nothing
BY_ROLE = {"update_every": 1, "ema_decay": None}
LONGEST_WAIT = 2**20  # steps; counted in float32, twice


def group_label(index: int, group: dict[str, Any]) -> str:
    """How errors call a group."""
    return f"param group {index} ({group.get('role', 'body')})"


def param_label(index: int, group: dict[str, Any], position: int) -> str:
    """How errors call a parameter: its name, when known, and its group."""
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
    if role not in ROLES:
        raise ValueError(f"param group {index}: unknown role {role!r}, expected 'body' or 'head'")
    rule = group.get("rule", defaults["rule"])
    if "rule" not in group and rule != "sgd" and "decoupled_weight_decay" in group:
        rule = "adamw" if group["decoupled_weight_decay"] else "adam"
    if rule not in SETTINGS:
        known = ", ".join(map(repr, SETTINGS))
        raise ValueError(f"{group_label(index, group)}: unknown rule {rule!r}, expected {known}")
    completed = {**RULE_DEFAULTS[rule], **defaults, **group, "role": role, "rule": rule}
    for name in BY_ROLE:
        if name not in group and isinstance(completed[name], dict):
            completed[name] = completed[name].get(role, BY_ROLE[name])
    if "lr" not in group and role == "head":
        _number(group_label(index, group), "lr", defaults["lr"])
        completed["lr"] = defaults["lr"] * head_lr_ratio
    if rule != "sgd" and "decoupled_weight_decay" not in group:
        completed["decoupled_weight_decay"] = rule == "adamw"
    return completed


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


def _check_rate(label: str, lr: Any) -> None:
    if not isinstance(lr, Tensor) or lr.device.type == "cpu":
        at_least_zero(label, "lr", lr)
        return
    # its value is left where it is: reading it would wait for the device
    if lr.numel() != 1:
        raise ValueError(f"{label}: lr must have one element, got shape {tuple(lr.shape)}")
    if lr.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{label}: lr on {lr.device} must be float32 or float64, got {lr.dtype}")


def check_settings(group: dict[str, Any], index: int) -> None:
    """Raise ValueError or TypeError, naming the group, for hyperparameters that no rule accepts."""
    label = group_label(index, group)
    if group.get("role") not in ROLES:
        raise ValueError(f"{label}: unknown role, expected 'body' or 'head'")
    if group.get("rule") not in SETTINGS:
        raise ValueError(f"{label}: unknown rule {group.get('rule')!r}")
    missing = [name for name in SETTINGS[group["rule"]] if name not in group]
    if missing:
        raise ValueError(f"{label}: rule {group['rule']!r} needs {', '.join(missing)}")
    _check_rate(label, group["lr"])
    at_least_zero(label, "weight_decay", group["weight_decay"])
    _check_average_and_turns(label, group)
    if group["rule"] == "sgd":
        momentum = at_least_zero(label, "momentum", group["momentum"])
        dampening = _number(label, "dampening", group["dampening"])
        if not abs(dampening) <= LARGEST_FLOAT:
            raise ValueError(f"{label}: invalid dampening {dampening}")
        if group["nesterov"] and (momentum == 0 or dampening != 0):
            raise ValueError(f"{label}: nesterov requires a momentum and zero dampening")
        return
    if bool(group.get("decoupled_weight_decay", group["rule"] == "adamw")) != (
        group["rule"] == "adamw"
    ):
        raise ValueError(
            f"{label}: rule {group['rule']!r} and decoupled_weight_decay={group['decoupled_weight_decay']!r} "
            "contradict each other"
        )
    at_least_zero(label, "eps", group["eps"])
    betas = group["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"{label}: betas must be a pair, got {betas!r}")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ValueError(f"{label}: betas must be either both floats or both tensors")
    for position, beta in enumerate(betas):
        if not 0.0 <= _number(label, f"betas[{position}]", beta) < 1.0:
            raise ValueError(f"{label}: invalid betas[{position}] {beta!r}, must be in [0, 1)")


def _check_average_and_turns(label: str, group: dict[str, Any]) -> None:
    decay = group["ema_decay"]
    if decay is not None and not 0.0 <= _number(label, "ema_decay", decay) < 1.0:
        raise ValueError(f"{label}: invalid ema_decay {decay!r}, must be None or in [0, 1)")
    every, grads = group["update_every"], group["update_every_grads"]
    if isinstance(every, bool) or not isinstance(every, Integral):
        raise TypeError(f"{label}: update_every must be an int, got {every!r}")
    if not 1 <= every <= LONGEST_WAIT:
        raise ValueError(
            f"{label}: invalid update_every {every}, must be >= 1 and <= {LONGEST_WAIT}"
        )
    if grads not in ("latest", "mean"):
        raise ValueError(
            f"{label}: unknown update_every_grads {grads!r}, expected 'latest' or 'mean'"
        )
    if group.get("differentiable") and (every > 1 or decay is not None):
        raise ValueError(
            f"{label}: differentiable=True goes with neither update_every nor ema_decay"
        )


def check_by_role(defaults: dict[str, Any]) -> None:
    """Raise ValueError for settings by role of roles that there are not."""
    for name in BY_ROLE:
        value = defaults[name]
        unknown = [key for key in value if key not in ROLES] if isinstance(value, dict) else []
        if unknown:
            raise ValueError(f"{name}: unknown role {unknown[0]!r}, expected 'body' or 'head'")


def check_ratio(value: Any) -> float:
    ratio = _number("optimizer", "head_lr_ratio", value)
    if not 0.0 < ratio < math.inf:
        raise ValueError(f"optimizer: invalid head_lr_ratio {value!r}, must be finite and > 0")
    return ratio


def check_params(group: dict[str, Any], index: int) -> None:
    """Raise for parameters that no rule can update."""
    if group["role"] == "head" and not group["params"]:
        raise ValueError(f"{group_label(index, group)}: the head is empty")
    for position, param in enumerate(group["params"]):
        label = param_label(index, group, position)
        if not isinstance(param, Tensor):
            raise TypeError(f"{label}: expected a tensor, got {torch.typename(param)}")
        if param.layout is not torch.strided:
            raise TypeError(f"{label}: {param.layout} parameters are not supported")
        frozen = not param.requires_grad and param.grad is None
        if not param.is_floating_point() and not frozen:
            raise TypeError(f"{label}: parameters must be real floating point, got {param.dtype}")
        if param.is_meta:
            raise ValueError(f"{label}: lives on the meta device, it has no memory to update")
        if not (param.is_leaf or param.retains_grad or group.get("differentiable")):
            raise ValueError(
                f"{label}: can't optimize a non-leaf tensor, autograd keeps no gradient for it"
            )


def check_new_group(group: dict[str, Any], index: int, groups: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError for a group that does not go with the ones before it."""
    if groups and ("param_names" in group) != ("param_names" in groups[0]):
        raise ValueError(
            f"{group_label(index, group)}: its parameters should be with names if those of the other groups are, "
            "and without if not"
        )
    known = {id(param): i for i, other in enumerate(groups) for param in other["params"]}
    for position, param in enumerate(group["params"]):
        if id(param) in known:
            other = group_label(known[id(param)], groups[known[id(param)]])
            raise ValueError(f"{param_label(index, group, position)}: it is already in {other}")


def _as_array(tensor: Tensor) -> np.ndarray:
    """An array with the addresses of a tensor; its memory (maybe another device's) is never touched."""

    interface = {
        "version": 3,
        "data": (tensor.data_ptr(), False),
        "shape": tuple(tensor.shape),
        "strides": tuple(s * tensor.element_size() for s in tensor.stride()),
        "typestr": f"|V{tensor.element_size()}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _meets_itself(tensor: Tensor) -> bool:
    """Whether two elements share one memory location."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            break
        reach += (size - 1) * stride
    else:
        return False  # each stride steps over everything that the smaller ones reach
    places = np.zeros(1, np.int64)
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        places = np.unique(places[:, None] + stride * np.arange(size))
    return len(places) < tensor.numel()


def check_overlap(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError for two different parameters, or one, that use the same memory twice.

    Disjoint parameters in one storage pass, also interleaved ones.
    """
    spans = []
    for label, param in named:
        tensor = local_tensor(param)
        if tensor.numel() == 0:
            continue
        if _meets_itself(tensor):
            raise ValueError(f"{label}: several of its elements share one memory location")
        extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        first = tensor.data_ptr()
        spans.append(
            (str(tensor.device), first, first + extent * tensor.element_size(), label, tensor)
        )
    spans.sort(key=lambda span: span[:3])
    active: list[tuple] = []
    for span in spans:
        active = [a for a in active if a[0] == span[0] and a[2] > span[1]]
        for other in active:
            if np.shares_memory(_as_array(other[4]), _as_array(span[4])):
                raise ValueError(f"{span[3]} and {other[3]} overlap in memory")
        active.append(span)


class RatioWatch:
    """Warns, once each, when the body becomes the faster player or a scheduler makes all rates equal."""

    def __init__(self) -> None:
        self._was_two_scale = False
        self._warned: set[str] = set()

    def look(self, body: np.ndarray, head: np.ndarray) -> None:
        """Rates of body and head groups, float64 arrays."""
        if not (len(body) and len(head)):
            return
        fastest, slowest = body.max(), head.min()
        if fastest > slowest:
            self._warn(
                "order",
                f"the body's learning rate ({fastest:g}) is above the head's ({slowest:g}): "
                "the body is meant to be the slow part",
            )
        elif fastest == slowest == head.max() != 0.0 and self._was_two_scale:
            self._warn(
                "collapse",
                f"body and head now share one learning rate ({fastest:g}): a scheduler set every group alike "
                "(OneCycleLR does with a scalar max_lr; give it one value per group), or the state of an optimizer "
                "with a single rate was loaded",
            )
        self._was_two_scale |= bool(fastest < slowest)

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn_caller(message)
