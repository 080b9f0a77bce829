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
    "lerp_weight",
    "beta2",
    "one_minus_beta2",
    "step_size",
    "eps",
    "momentum",
    "one_minus_dampening",
)
ROW = np.dtype([("rule", "<i4"), *((name, "<f4") for name in _SCALARS), ("reserved", "<f4", (5,))])

_ADAM_SETTINGS = ("weight_decay", "maximize", "betas", "eps", "amsgrad", "lr")
_SGD_SETTINGS = ("weight_decay", "maximize", "momentum", "dampening", "nesterov", "lr")
SETTINGS: dict[str, tuple[str, ...]] = {
    "adam": _ADAM_SETTINGS,
    "adamw": _ADAM_SETTINGS,
    "sgd": _SGD_SETTINGS,
}
# everything of a group that its rows depend on, cheap enough to read and compare at every step; the rate comes last
_GETTERS = {rule: itemgetter("rule", "role", *names) for rule, names in SETTINGS.items()}


def as_number(value: Any) -> float:
    """A number, or a tensor of one element, as float64."""
    return float(value.detach() if isinstance(value, Tensor) else value)


def is_volatile(group: dict[str, Any]) -> bool:
    """Whether a setting can change while the object that holds it stays the same."""
    values = _GETTERS[group["rule"]](group)
    betas = group["betas"] if group["rule"] != "sgd" else ()
    return any(isinstance(value, (Tensor, list)) for value in (*values, *betas))


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


def integer_power(base: float, exponent: int) -> float:
    """`base ** exponent` by binary exponentiation: float64 multiplications only, in this order in every language."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        exponent >>= 1
        if exponent:
            base *= base
    return result


def bias_corrections(beta1: float, beta2: float, step: int) -> tuple[float, float]:
    """What Adam's rate and eps are multiplied by at a step (Kingma & Ba 2015, end of section 2).

    Returns:
        `sqrt(1 - beta2^t) / (1 - beta1^t)` and `sqrt(1 - beta2^t)`.
    """
    bias_correction2_sqrt = math.sqrt(1.0 - integer_power(beta2, step))
    return bias_correction2_sqrt / (1.0 - integer_power(beta1, step)), bias_correction2_sqrt


class HyperparameterRows:
    """The rows of one table: one per group, and per distinct step count within a group.

    Args:
        groups: the optimizer's param groups.
        slot_group: int64 array [n]: the group of each slot of the table.

    Attributes:
        rows: ROW array; `address` is where it lies.
        slot_row: int64 array [n]: the row of each slot.
        rule: the rule that all rows share, or MIXED_RULES: which kernel a launch takes.
    """

    def __init__(self, groups: list[dict[str, Any]], slot_group: np.ndarray) -> None:
        self.slot_group = slot_group
        self.slot_row = np.zeros(len(slot_group), np.int64)
        used = sorted(set(slot_group.tolist()))
        self._used = used
        self._place = {index: place for place, index in enumerate(used)}
        self._groups = [groups[index] for index in used]
        self._getters = [_GETTERS[group["rule"]] for group in self._groups]
        self._settings: list[Any] = [None] * len(used)
        self._volatile: set[int] = set()
        count = len(groups)
        self._static = np.zeros(count, ROW)
        self._scalars = np.zeros((5, count))  # lr, beta1, beta2, eps, 1 - dampening
        self._weight_decay = np.zeros(count)
        self._is_sgd, self._is_decoupled = np.zeros(count, bool), np.zeros(count, bool)
        self._expected = b""
        none = np.zeros(0, np.int64)
        self._allocate(none, none, none.astype(bool))

    def changed_groups(self) -> tuple[list[int], list[int]]:
        """Groups whose settings were edited since they were last accepted, and those where only the rate was."""
        try:
            edited = [
                (index, get(group), known)
                for index, get, group, known in zip(
                    self._used, self._getters, self._groups, self._settings, strict=True
                )
                if get(group) != known
            ]
            rates = [i for i, now, known in edited if known is not None and now[:-1] == known[:-1]]
        except (KeyError, RuntimeError, ValueError):
            return (
                self._used,
                [],
            )  # a setting is gone, or has several elements: the check says where
        changed = {index for index, _, _ in edited}.difference(rates) | self._volatile
        return sorted(changed), rates

    def accept(self, changed: list[int], rates: list[int]) -> None:
        """Take over the settings of changed groups, after they were validated; of `rates` only the rate."""
        for index in changed:
            place = self._place[index]
            group = self._groups[place]
            self._getters[place] = _GETTERS[group["rule"]]
            (self._volatile.add if is_volatile(group) else self._volatile.discard)(index)
            self._set_static(index, group)
        for index in (*changed, *rates):
            place = self._place[index]
            self._settings[place] = settings = self._getters[place](self._groups[place])
            self._scalars[0, index] = as_number(settings[-1])
            if isinstance(settings[-1], Tensor):
                self._volatile.add(index)
        lr, static = self._scalars[0], self._static
        np.copyto(static["step_size"], lr, where=self._is_sgd, casting="same_kind")
        decay = 1.0 - lr * self._weight_decay
        np.copyto(static["param_decay"], decay, where=self._is_decoupled, casting="same_kind")
        self._fill()

    def group_rule(self, index: int) -> int:
        """The rule flags of a group."""
        return int(self._static["rule"][index])

    def _set_static(self, index: int, group: dict[str, Any]) -> None:
        """What a group's row keeps while only its rate and step count change."""
        row = self._static[index]
        row["rule"] = int(rule_of(group))
        row["grad_sign"] = -1.0 if group["maximize"] else 1.0
        row["weight_decay"] = self._weight_decay[index] = as_number(group["weight_decay"])
        row["param_decay"] = 1.0
        self._is_sgd[index] = group["rule"] == "sgd"
        self._is_decoupled[index] = group["rule"] == "adamw"
        if group["rule"] == "sgd":
            row["momentum"] = as_number(group["momentum"])
            self._scalars[1:, index] = 0.0, 0.0, 0.0, 1.0 - as_number(group["dampening"])
        else:
            beta1, beta2 = map(as_number, group["betas"])
            row["lerp_weight"] = 1.0 - beta1 if beta1 > 0.5 else -beta1
            row["beta2"] = beta2
            row["one_minus_beta2"] = 1.0 - beta2
            self._scalars[1:, index] = beta1, beta2, as_number(group["eps"]), 1.0

    def _allocate(
        self, representative: np.ndarray, row_step: np.ndarray, row_ready: np.ndarray
    ) -> None:
        """One row per representative slot."""
        self._representative, self._row_step, self._row_ready = representative, row_step, row_ready
        self._row_group = self.slot_group[representative]
        self.rows = np.zeros(len(representative), ROW)
        self.address = self.rows.ctypes.data
        self._step_size, self._row_eps = self.rows["step_size"], self.rows["eps"]
        self._fill()

    def _fill(self) -> None:
        """Everything of the rows but the bias corrections."""
        self.rows[:] = self._static[self._row_group]
        rules = set(self.rows["rule"].tolist())
        self.rule: int = rules.pop() if len(rules) == 1 else MIXED_RULES
        scalars = self._scalars[:, self._row_group]
        self._lr, self._beta1, self._beta2, self._eps, one_minus_dampening = scalars
        self.rows["one_minus_dampening"] = np.where(self._row_ready, one_minus_dampening, 1.0)
        self._is_adam = (self.rows["rule"] & Rule.SGD) == 0
        self._betas = list(zip(self._beta1.tolist(), self._beta2.tolist(), strict=True))
        self._adam_rows = np.flatnonzero(self._is_adam)
        self._one_pair = len({self._betas[i] for i in self._adam_rows.tolist()}) == 1
        self._find_shared()

    def _find_shared(self) -> None:
        """Adam rows that all have the same betas and step count share one pair of powers."""
        self._shared: tuple[float, float, int] | None = None
        if self._one_pair:
            steps = self._row_step[self._adam_rows].tolist()
            if steps.count(steps[0]) == len(steps):
                self._shared = (*self._betas[self._adam_rows[0]], steps[0])

    def update(self, step_counts: np.ndarray, momentum_ready: np.ndarray) -> bool:
        """Compute the rows of the coming step.

        Args:
            step_counts: float32 array [n]: steps that each slot has taken.
            momentum_ready: bool array [n]: False where this step creates the momentum buffer.

        Returns:
            Whether `slot_row` changed (then the records have to follow).
        """
        regrouped = self._expected != step_counts.tobytes() + momentum_ready.tobytes()
        if regrouped:
            self._regroup(step_counts.astype(np.int64) + 1, momentum_ready)
        if self._shared is not None:
            factor, bias_correction2_sqrt = bias_corrections(*self._shared)
        elif len(self._adam_rows):
            keys = list(zip(self._betas, self._row_step.tolist(), strict=True))
            known = {(betas, step): bias_corrections(*betas, step) for betas, step in set(keys)}
            factor, bias_correction2_sqrt = np.array([known[key] for key in keys]).T
        else:
            return regrouped
        np.multiply(self._lr, factor, out=self._step_size, casting="same_kind", where=self._is_adam)
        np.multiply(self._eps, bias_correction2_sqrt, out=self._row_eps, casting="same_kind")
        return regrouped

    def _regroup(self, next_step: np.ndarray, momentum_ready: np.ndarray) -> None:
        key = np.stack([self.slot_group, next_step, momentum_ready.astype(np.int64)])
        _, representative, slot_row = np.unique(key, axis=1, return_index=True, return_inverse=True)
        self.slot_row = slot_row.reshape(-1)
        self._allocate(representative, next_step[representative], momentum_ready[representative])

    def advance(
        self, step_counts: np.ndarray, momentum_ready: np.ndarray, stepped: np.ndarray | None
    ) -> None:
        """After a step: rows whose slots all took it, or all did not, stay as they are but for the count.

        Args:
            step_counts, momentum_ready: as in `update`, after the step.
            stepped: bool array [n]: slots that took the step; None means all.
        """
        if not np.array_equal(momentum_ready[self._representative], self._row_ready):
            self._expected = (
                b""  # the first momentum step is over: its rows differ from the next ones
            )
            return
        if stepped is None:
            self._row_step += 1
        else:
            row_stepped = stepped[self._representative]
            if not np.array_equal(row_stepped[self.slot_row], stepped):
                self._expected = b""
                return
            self._row_step += row_stepped
        self._find_shared()
        self._expected = step_counts.tobytes() + momentum_ready.tobytes()
