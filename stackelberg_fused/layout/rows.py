"""Hyperparameter rows: the scalars of each group at each step count, computed in float64 and rounded once."""

from __future__ import annotations

import numpy as np

from ..groups.hyperparameters import Hyperparameters
from ..groups.rules import MIXED_RULES
from ..native.tables import HAS_SUM, ROW, WAITS
from ..numerics import turns
from ..numerics.bias_correction import bias_corrections

try:
    from .._cpu import find_bad_count, update_rows
except ImportError:
    find_bad_count = update_rows = None

LARGEST_COUNT = 2**53  # beyond it float64 skips numbers; kLargestCount of csrc/cpu/rows.h


class HyperparameterRows:
    """The rows of one table: one per group, and per distinct step count within a group.

    Args:
        hyperparameters: of the optimizer's param groups.
        slot_group: int64 array [n]: the group of each slot of the table.
        step_counts: float32 array [n]: steps that each slot has taken; kept, and read at every update.
        momentum_ready: bool array [n]: False where the coming step creates the momentum buffer; likewise.
        waited: float32 array [n]: see `stackelberg_fused.numerics.turns`; likewise.

    Attributes:
        rows: ROW array; `address` is where it lies.
        slot_row: int64 array [n]: the row of each slot.
        rules: those that rows have, ascending, each once.
        rule: the one that all rows share, or MIXED_RULES: which kernel a launch takes.
        version: counts changes of `rows`.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        slot_group: np.ndarray,
        step_counts: np.ndarray,
        momentum_ready: np.ndarray,
        waited: np.ndarray,
    ) -> None:
        self.slot_group = slot_group
        self._hyperparameters = hyperparameters
        self._step_counts, self._momentum_ready = step_counts, momentum_ready
        self._waited = waited
        self.version = 0
        self._regroup()

    def bad_count(self) -> int | None:
        """A slot whose step count, or number of steps waited, is none: negative, NaN, or too large to count on from."""
        if find_bad_count is not None:
            found = find_bad_count(self._table_address)
            return None if found < 0 else found
        good = (self._step_counts >= 0) & (self._step_counts < LARGEST_COUNT)
        good &= (self._waited >= 0) & (self._waited < LARGEST_COUNT)
        return None if good.all() else int(np.argmin(good))

    def update(self) -> bool:
        """Compute the rows of the coming step, from step counts none of which is bad.

        Returns:
            Whether `slot_row` changed (then the records have to follow).
        """
        self.version += 1
        # an interrupt may have come while they were grouped
        regrouped = not (self._is_grouped and self._update())
        if regrouped:
            self._regroup()
            self._update()
        return regrouped

    def refill(self) -> None:
        """Take over from the hyperparameters what step count and rate do not change."""
        self.rows[:] = self._hyperparameters.static[self._row_group]
        self.rows["one_minus_dampening"][~self._row_ready] = 1.0
        rules = tuple(sorted(set(self.rows["rule"].tolist())))
        self.rule: int = rules[0] if len(rules) == 1 else MIXED_RULES
        self.rules: tuple[int, ...] = rules

    def _update(self) -> bool:
        """`update_rows` of csrc/cpu/rows.cpp: False, and nothing is written, where slots have to be grouped again."""
        if update_rows is not None:
            return update_rows(self._table_address)
        counts, slot_row = self._step_counts[self._representative], self.slot_row
        if not np.array_equal(counts[slot_row], self._step_counts):
            return False
        if not np.array_equal(self._row_ready[slot_row], self._momentum_ready):
            return False
        waited = self._waited[self._representative]
        if not np.array_equal(waited[slot_row], self._waited):
            return False
        group = self._hyperparameters.scalars[self._row_group]
        inputs = group["beta1"].tolist(), group["beta2"].tolist(), counts.tolist()
        keys = [(beta1, beta2, int(count) + 1) for beta1, beta2, count in zip(*inputs, strict=True)]
        known = {key: bias_corrections(*key) for key in set(keys)}
        factor, bias_correction2_sqrt = np.array([known[key] for key in keys]).T
        with np.errstate(over="ignore", invalid="ignore"):  # rates may be infinite
            self.rows["param_decay"] = 1.0 - group["lr"] * group["decay"]
            self.rows["step_size"] = group["lr"] * factor
            self.rows["eps"] = group["eps"] * bias_correction2_sqrt
        waits = turns.waits(waited, group["update_every"])
        self.rows["step"] = [step & 0x7FFFFFFF for *_, step in keys]
        self.rows["turn"] = WAITS * waits + HAS_SUM * turns.has_sum(waited)
        return True

    def _regroup(self) -> None:
        """One row per group, step count, readiness and waiting."""
        self._is_grouped = False
        key = np.stack([self.slot_group, self._step_counts, self._momentum_ready, self._waited])
        _, self._representative, slot_row = np.unique(
            key, axis=1, return_index=True, return_inverse=True
        )
        self.slot_row = slot_row.reshape(-1)
        self._row_group = self.slot_group[self._representative]
        self._row_ready = self._momentum_ready[self._representative]
        self.rows = np.zeros(len(self._representative), ROW)
        self.address = self.rows.ctypes.data
        read = (
            self.rows,
            self._hyperparameters.scalars,
            self._row_group,
            self._representative,
            self._row_ready,
            self.slot_row,
            self._step_counts,
            self._momentum_ready,
            self._waited,
        )
        addresses = [array.ctypes.data for array in read]
        self._table = np.array([*addresses, len(self.rows), len(self.slot_group)], np.int64)
        self._table_address = self._table.ctypes.data
        self.refill()
        self._is_grouped = True
