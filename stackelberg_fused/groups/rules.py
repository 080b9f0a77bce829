"""The rules, and which settings of a param group each reads."""

from __future__ import annotations

from enum import IntFlag
from numbers import Integral, Real
from types import NoneType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .constraints import CONSTRAINTS


class Rule(IntFlag):
    """The flags of an update rule (`enum Rule` in csrc/tables.h). No flag: Adam."""

    SGD = 1
    AMSGRAD = 2
    L2 = 4
    MOMENTUM = 8
    NESTEROV = 16
    EMA = 32
    CAUTIOUS = 64


MIXED_RULES = -1

_ADAM = Rule(0)
_SGD_MOMENTUM = Rule.SGD | Rule.MOMENTUM
RULES: tuple[int, ...] = tuple(
    int(rule | l2 | ema)
    for ema in (Rule(0), Rule.EMA)
    for rule in (_ADAM, Rule.AMSGRAD, Rule.SGD, _SGD_MOMENTUM, _SGD_MOMENTUM | Rule.NESTEROV)
    for l2 in (Rule(0), Rule.L2, *(() if rule & Rule.SGD else (Rule.CAUTIOUS,)))
)

_COMMON = (
    "lr",
    "weight_decay",
    "maximize",
    "ema_decay",
    "update_every",
    "update_every_grads",
    "constraint",
    "master",
    "state_dtype",
    "float32_state",
    "seed",
)
_ADAM_NAMES = (*_COMMON, "betas", "eps", "amsgrad")
_SGD_NAMES = (*_COMMON, "momentum", "dampening", "nesterov")
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "adam": _ADAM_NAMES,
    "adamw": _ADAM_NAMES,
    "sgd": _SGD_NAMES,
}
_IMMUTABLE = {int, float, bool, tuple, str, NoneType, *CONSTRAINTS}


def as_number(value: Any) -> float:
    """A number, or a tensor of one element, as float64."""
    # what nearly all are, and asking whether something is a tensor takes longer
    if type(value) is float:
        return value
    return float(value.detach() if isinstance(value, Tensor) else value)


def is_integer(value: Any) -> bool:
    """Tell whether a value is an integer: Python's, NumPy's, or an array or a tensor of one."""
    if isinstance(value, Tensor):
        is_other = value.is_floating_point() or value.is_complex() or value.dtype is torch.bool
        return value.numel() == 1 and not is_other
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "iu"
    return isinstance(value, Integral) and not isinstance(value, bool)


def as_integer(value: Any) -> int:
    """Such an integer as Python's."""
    if type(value) is int:
        return value
    return int(value.item() if isinstance(value, (Tensor, np.ndarray)) else value)


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number: Python's, NumPy's, or an array or a tensor of one."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and value.dtype is not torch.bool
    if isinstance(value, np.ndarray):
        return value.size == 1 and value.dtype.kind in "iuf"
    return isinstance(value, Real) and not isinstance(value, bool)


def is_volatile(group: dict[str, Any]) -> bool:
    """Tell whether a setting can change while the object that holds it stays the same, as a tensor's value can."""
    values = [group[name] for name in HYPERPARAMETERS[group["rule"]]]
    if isinstance(group.get("betas"), tuple):
        values.extend(group["betas"])
    return not all(type(value) in _IMMUTABLE or isinstance(value, np.generic) for value in values)


def rule_of(group: dict[str, Any]) -> Rule:
    """The rule flags of a group: the specialisation of the kernel that updates it."""
    if group["rule"] == "sgd":
        rule = Rule.SGD
        if group["momentum"] != 0:
            rule |= Rule.MOMENTUM
            if group["nesterov"]:
                rule |= Rule.NESTEROV
    else:
        rule = Rule.AMSGRAD if group["amsgrad"] else _ADAM
    if group["weight_decay"] != 0:
        if group["rule"] != "adamw":
            rule |= Rule.L2
        elif group.get("cautious"):  # optional: a group that was of another rule may lack it
            rule |= Rule.CAUTIOUS
    if group["ema_decay"] is not None:
        rule |= Rule.EMA
    return rule


def sums_gradients(group: dict[str, Any]) -> bool:
    """Tell whether gradients are summed up while the group waits for its turn."""
    return as_integer(group["update_every"]) > 1 and group["update_every_grads"] == "mean"
