"""Hyperparameter rows: the scalars of each group at each step count, computed in float64 and rounded once.

`ROW` and `GROUP` are the memory layouts of `struct Row` and `struct GroupScalars` in csrc/tables.h, field for field.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .bias_correction import bias_corrections
from .rules import MIXED_RULES, SETTINGS_OF, as_number, is_volatile, rule_of

try:
    from ._cpu import update_rows
except ImportError:
    update_rows = None

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
GROUP = np.dtype(
    [
        *((name, "<f8") for name in ("lr", "beta1", "beta2", "eps", "decay")),
        ("reserved", "<f8", (3,)),
    ]
)


LARGEST_COUNT = 2**53  # beyond it float64 skips numbers


class HyperparameterRows:
    """The rows of one table: one per group, and per distinct step count within a group.

    Args:
        groups: the optimizer's param groups.
        slot_group: int64 array [n]: the group of each slot of the table.
        step_counts: float32 array [n]: steps that each slot has taken; kept, and read at every update.
        momentum_ready: bool array [n]: False where the coming step creates the momentum buffer; likewise.

    Attributes:
        rows: ROW array; `address` is where it lies.
        slot_row: int64 array [n]: the row of each slot.
        rule: the rule that all rows share, or MIXED_RULES: which kernel a launch takes.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        slot_group: np.ndarray,
        step_counts: np.ndarray,
        momentum_ready: np.ndarray,
    ) -> None:
        self.slot_group = slot_group
        self._step_counts, self._momentum_ready = step_counts, momentum_ready
        used = sorted(set(slot_group.tolist()))
        self._place = {index: place for place, index in enumerate(used)}
        self._groups = [groups[index] for index in used]
        self._settings: list[Any] = [None] * len(used)
        # groups to look at in every step: not accepted yet, or with a setting that can change in place
        self._open: set[int] = set(used)
        self._edited: set[int] = set()  # those to look at until they are accepted
        self._static = np.zeros(len(groups), ROW)
        self._scalars = np.zeros(len(groups), GROUP)
        self._lr = self._scalars["lr"]
        self._one_minus_dampening = np.ones(len(groups))
        self._regroup()

    def look_at(self, edited: Iterable[int]) -> None:
        """Have `changed_groups` look at groups in which anything may have been replaced."""
        self._edited.update(self._place.keys() & edited)

    def changed_groups(self) -> tuple[list[int], list[int]]:
        """Groups whose settings were edited since they were last accepted, and those where only the rate was."""
        changed: list[int] = []
        rates: list[int] = []
        for index in sorted(self._open | self._edited):
            known = self._settings[self._place[index]]
            group = self._groups[self._place[index]]
            only_rate = False
            try:
                # an equal value in an object that can change in place is no equal setting
                if known and index not in self._open and not is_volatile(group):
                    now = SETTINGS_OF[known[0]](group)
                    if now == known:
                        self._edited.discard(index)
                        continue
                    only_rate = now[:-1] == known[:-1]
            except (KeyError, RuntimeError, ValueError):
                pass  # a setting is gone, or has several elements: the check says where
            (rates if only_rate else changed).append(index)
        return changed, rates

    def accept(self, changed: list[int], rates: list[int]) -> None:
        """Take over the settings of changed groups, after they were validated; of `rates` only the rate."""
        for index in changed:
            group = self._groups[self._place[index]]
            (self._open.add if is_volatile(group) else self._open.discard)(index)
            self._set_static(index, group)
        for index in (*changed, *rates):
            place = self._place[index]
            group = self._groups[place]
            self._settings[place] = settings = SETTINGS_OF[group["rule"]](group)
            self._lr[index] = as_number(settings[-1])
        self._edited.difference_update(changed, rates)
        if changed:
            self._fill()

    def group_rule(self, index: int) -> int:
        """The rule flags of a group."""
        return int(self._static["rule"][index])

    def _set_static(self, index: int, group: dict[str, Any]) -> None:
        """What a group's row keeps while only its rate and step count change."""
        row, scalars = self._static[index], self._scalars[index]
        weight_decay = as_number(group["weight_decay"])
        row["rule"] = int(rule_of(group))
        row["grad_sign"] = -1.0 if group["maximize"] else 1.0
        row["weight_decay"] = weight_decay
        scalars["decay"] = weight_decay if group["rule"] == "adamw" else 0.0
        if group["rule"] == "sgd":
            row["momentum"] = as_number(group["momentum"])
            self._one_minus_dampening[index] = 1.0 - as_number(group["dampening"])
            scalars["beta1"] = scalars["beta2"] = scalars["eps"] = 0.0  # its rate is not corrected
        else:
            beta1, beta2 = map(as_number, group["betas"])
            row["lerp_weight"] = 1.0 - beta1 if beta1 > 0.5 else -beta1
            row["beta2"] = beta2
            row["one_minus_beta2"] = 1.0 - beta2
            scalars["beta1"], scalars["beta2"] = beta1, beta2
            scalars["eps"] = as_number(group["eps"])

    def update(self) -> bool:
        """Compute the rows of the coming step.

        Returns:
            Whether `slot_row` changed (then the records have to follow).
        """
        if self._update():
            return False
        self._regroup()
        if not self._update():
            raise RuntimeError("a step count is none: they were to be checked before")
        return True

    def _update(self) -> bool:
        """`update_rows` of csrc/cpu/rows.cpp: False, and nothing is written, where slots have to be grouped again."""
        if update_rows is not None:
            return update_rows(self._table_address)
        counts, slot_row = self._step_counts[self._representative], self.slot_row
        if not np.array_equal(counts[slot_row], self._step_counts):
            return False
        if not ((counts >= 0) & (counts < LARGEST_COUNT)).all():
            return False
        if not np.array_equal(self._row_ready[slot_row], self._momentum_ready):
            return False
        group = self._scalars[self._row_group]
        keys = zip(group["beta1"].tolist(), group["beta2"].tolist(), counts.tolist(), strict=True)
        keys = [(beta1, beta2, int(count) + 1) for beta1, beta2, count in keys]
        known = {key: bias_corrections(*key) for key in set(keys)}
        factor, bias_correction2_sqrt = np.array([known[key] for key in keys]).T
        self.rows["param_decay"] = 1.0 - group["lr"] * group["decay"]
        self.rows["step_size"] = group["lr"] * factor
        self.rows["eps"] = group["eps"] * bias_correction2_sqrt
        return True

    def _regroup(self) -> None:
        """One row per group, step count and readiness."""
        ready = self._momentum_ready
        counts = self._step_counts.view(np.int32).astype(
            np.int64
        )  # by their bits, as they are compared
        key = np.stack([self.slot_group, counts, ready.astype(np.int64)])
        _, self._representative, slot_row = np.unique(
            key, axis=1, return_index=True, return_inverse=True
        )
        self.slot_row = slot_row.reshape(-1)
        self._row_group = self.slot_group[self._representative]
        self._row_ready = ready[self._representative]
        self.rows = np.zeros(len(self._representative), ROW)
        self.address = self.rows.ctypes.data
        read = (
            self.rows,
            self._scalars,
            self._row_group,
            self._representative,
            self._row_ready,
            self.slot_row,
            self._step_counts,
            self._momentum_ready,
        )
        addresses = [array.ctypes.data for array in read]
        self._table = np.array([*addresses, len(self.rows), len(self.slot_group)], np.int64)
        self._table_address = self._table.ctypes.data
        self._fill()

    def _fill(self) -> None:
        """Everything of the rows that step count and rate do not change."""
        self.rows[:] = self._static[self._row_group]
        self.rows["one_minus_dampening"] = np.where(
            self._row_ready, self._one_minus_dampening[self._row_group], 1.0
        )
        rules = set(self.rows["rule"].tolist())
        self.rule: int = rules.pop() if len(rules) == 1 else MIXED_RULES
