"""Hyperparameter rows: the scalars of each group at each step count, computed in float64 and rounded once.

`ROW` is the memory layout of `struct Row` in csrc/tables.h, field for field.
"""

from __future__ import annotations

import math
from enum import IntFlag
from operator import itemgetter
from typing import Any

import numpy as np
from torch import Tensor


class Rule(IntFlag):
    """What a row's update does beyond its scalars (`enum Rule` in csrc/tables.h). No flag: Adam."""

    SGD = 1
    AMSGRAD = 2
    L2 = 4
    MOMENTUM = 8
    NESTEROV = 16


MIXED_RULES = -1

_ADAM = Rule(0)
_SGD_MOMENTUM = Rule.SGD | Rule.MOMENTUM
RULES: tuple[int, ...] = tuple(
    int(rule | l2)
    for rule in (_ADAM, Rule.AMSGRAD, Rule.SGD, _SGD_MOMENTUM, _SGD_MOMENTUM | Rule.NESTEROV)
    for l2 in (Rule(0), Rule.L2)
)

_SCALARS = (
    "grad_sign",
    "weight_decay",
    "param_decay",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "step_size",
    "eps",
    "momentum",
    "one_minus_dampening",
)
ROW = np.dtype(
    [("rule", "<i4"), *((name, "<f4") for name in _SCALARS), ("reserved", "<f4", (5,))]
)

_ADAM_SETTINGS = ("lr", "weight_decay", "maximize", "betas", "eps", "amsgrad")
_SGD_SETTINGS = ("lr", "weight_decay", "maximize", "momentum", "dampening", "nesterov")
SETTINGS: dict[str, tuple[str, ...]] = {
    "adam": _ADAM_SETTINGS,
    "adamw": _ADAM_SETTINGS,
    "sgd": _SGD_SETTINGS,
}
_GETTERS = {rule: itemgetter("rule", *names) for rule, names in SETTINGS.items()}


def group_settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """Everything of a group that its rows depend on, cheap enough to read and compare at every step."""
    return _GETTERS[group["rule"]](group)


def is_volatile(group: dict[str, Any]) -> bool:
    """Whether a setting can change while the object that holds it stays the same."""
    return isinstance(group["lr"], Tensor) or isinstance(group.get("betas"), list)


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
    if group["rule"] != "adamw" and group["weight_decay"] != 0:
        rule |= Rule.L2
    return rule


def integer_power(base: Any, exponent: Any) -> Any:
    """`base ** exponent` by binary exponentiation: float64 multiplications only, in this order in every language.

    `base` and `exponent` are a float and a non-negative int, or float64 and int64 arrays of one shape.
    """
    result = np.ones_like(base) if isinstance(base, np.ndarray) else 1.0
    while True:
        if isinstance(base, np.ndarray):
            result = np.where(exponent & 1, result * base, result)
        elif exponent & 1:
            result = result * base
        exponent = exponent >> 1
        if not np.any(exponent):
            return result
        base = base * base


class HyperparameterRows:
    """The rows of one table: one per group, and per distinct step count within a group.

    Args:
        groups: the optimizer's param groups.
        slot_group: int64 array [n]: the group of each slot of the table.
    """

    def __init__(self, groups: list[dict[str, Any]], slot_group: np.ndarray) -> None:
        self._groups = groups
        self.slot_group = slot_group
        self._used = sorted(set(slot_group.tolist()))
        self._settings: list[Any] = [None] * len(groups)
        self._volatile: list[bool] = [False] * len(groups)
        count = len(groups)
        self._static = np.zeros(count, ROW)
        self._rule = np.zeros(count, np.int32)
        self._scalars = np.zeros((5, count))  # lr, beta1, beta2, eps, dampening
        self._keys: tuple[np.ndarray, np.ndarray] | None = None
        self.slot_row = np.zeros(len(slot_group), np.int64)
        self._allocate(np.zeros(0, np.int64))

    def _allocate(self, representative: np.ndarray) -> None:
        """Room for one row per representative slot. Everything but the bias corrections is filled here."""
        self._representative = representative
        self._row_group = row_group = self.slot_group[representative]
        self.rows = self._static[row_group]
        self.address = self.rows.ctypes.data
        self._lr, self._beta1, self._beta2, self._eps, self._dampening = self._scalars[:, row_group]
        self._is_adam = (self._rule[row_group] & Rule.SGD) == 0
        self._all_adam = bool(self._is_adam.all())
        self._no_adam = not self._is_adam.any()
        self._one_beta = len(set(zip(self._beta1.tolist(), self._beta2.tolist(), strict=True))) == 1
        self._step_size, self._row_eps = self.rows["step_size"], self.rows["eps"]
        self._one_minus_dampening = self.rows["one_minus_dampening"]
        rules = set(self.rows["rule"].tolist())
        # the rule that all rows share, or MIXED_RULES: which kernel a launch takes
        self.rule: int = rules.pop() if len(rules) == 1 else MIXED_RULES

    def refresh(self) -> list[int]:
        """Read settings that were edited since the last step. Returns the groups whose settings changed."""
        changed = []
        groups, settings, volatile = self._groups, self._settings, self._volatile
        for index in self._used:
            group = groups[index]
            now = _GETTERS[group["rule"]](group)
            if volatile[index] or now != settings[index]:
                changed.append(index)
        return changed

    def accept(self, changed: list[int]) -> None:
        """Take over the settings of changed groups, after they were validated."""
        for index in changed:
            group = self._groups[index]
            self._settings[index] = group_settings(group)
            self._volatile[index] = is_volatile(group)
            self._set_static(index, group)
        if changed:
            self._allocate(self._representative)

    def _set_static(self, index: int, group: dict[str, Any]) -> None:
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        row = self._static[index]
        rule = rule_of(group)
        self._rule[index] = row["rule"] = int(rule)
        row["grad_sign"] = -1.0 if group["maximize"] else 1.0
        row["weight_decay"] = weight_decay
        row["param_decay"] = 1.0 - lr * weight_decay if group["rule"] == "adamw" else 1.0
        if rule & Rule.SGD:
            row["step_size"] = lr
            row["momentum"] = float(group["momentum"])
            row["one_minus_dampening"] = 1.0 - float(group["dampening"])
            self._scalars[:, index] = lr, 0.0, 0.0, 0.0, float(group["dampening"])
        else:
            beta1, beta2 = map(float, group["betas"])
            row["one_minus_beta1"] = 1.0 - beta1
            row["beta2"] = beta2
            row["one_minus_beta2"] = 1.0 - beta2
            self._scalars[:, index] = lr, beta1, beta2, float(group["eps"]), 0.0

    def update(self, next_step: np.ndarray, first_momentum: np.ndarray) -> bool:
        """Compute the rows of the coming step.

        Args:
            next_step: int64 array [n]: the step count each slot would reach.
            first_momentum: bool array [n]: slots whose momentum buffer this step creates.

        Returns:
            Whether `slot_row` changed (then the records have to follow).
        """
        representative, slot_row = self._representative, self.slot_row
        regrouped = len(representative) == 0 or not (
            np.array_equal(next_step[representative][slot_row], next_step)
            and np.array_equal(first_momentum[representative][slot_row], first_momentum)
        )
        if regrouped:
            key = np.stack([self.slot_group, next_step, first_momentum.astype(np.int64)])
            _, representative, slot_row = np.unique(
                key, axis=1, return_index=True, return_inverse=True
            )
            self.slot_row = slot_row.reshape(-1)
            self._allocate(representative)
        if not self._all_adam:
            fresh = first_momentum[representative]
            np.copyto(
                self._one_minus_dampening,
                np.where(fresh, 1.0, 1.0 - self._dampening),
                casting="same_kind",
            )
        if not self._no_adam:
            self._set_bias_corrections(next_step[representative])
        return regrouped

    def _set_bias_corrections(self, step: np.ndarray) -> None:
        if self._one_beta and (step == step[0]).all():
            count = int(step[0])
            bias_correction1: Any = 1.0 - integer_power(float(self._beta1[0]), count)
            bias_correction2_sqrt: Any = math.sqrt(
                1.0 - integer_power(float(self._beta2[0]), count)
            )
        else:
            bias_correction1 = 1.0 - integer_power(self._beta1, step)
            bias_correction2_sqrt = np.sqrt(1.0 - integer_power(self._beta2, step))
        adam = self._is_adam
        step_size = self._lr * bias_correction2_sqrt / bias_correction1
        np.copyto(self._step_size, step_size, casting="same_kind", where=adam)
        np.copyto(self._row_eps, self._eps * bias_correction2_sqrt, casting="same_kind", where=adam)

    def group_rule(self, index: int) -> int:
        """The rule flags of a group."""
        return int(self._rule[index])
