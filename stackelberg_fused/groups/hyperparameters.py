"""The hyperparameters of all param groups: the accepted values, and the edits made since."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..native.change_detection import make_container_snapshot
from ..native.tables import GROUP, ROW
from .constraints import (
    JointSet,
    box_bounds,
    joint_set,
)
from .param_groups import ROLES, check_hyperparameters
from .rules import (
    Rule,
    as_integer,
    as_number,
    is_volatile,
    rule_of,
    sums_gradients,
)
from .schemes import storage_of

_SMALLEST = float(np.finfo(np.float32).tiny)


class Accepted(NamedTuple):
    """Groups that were accepted with other settings.

    Attributes:
        new_rules: with another rule, turn or joint set, which may need state that was not needed before.
        new_turns: those of them that begin to wait for their turn anew.
    """

    new_rules: list[int]
    new_turns: list[int]


class Hyperparameters:
    """One row of constants and scalars per param group, which the rows of every table are made from.

    Schedulers replace the rate of every group at every step, so a rate that is a plain number is taken over on sight,
    without a Python call per group; any other edit is checked first, and accepted when nothing can fail any more.

    Args:
        groups: the optimizer's param groups.

    Attributes:
        static: ROW array [groups]: the fields of a row that step count and rate do not change.
        scalars: GROUP array [groups]: from which the other fields are computed at every step.
        version: counts changes of both.
        players: bool arrays [groups] of body and head: which groups have parameters and this role.
    """

    def __init__(
        self, groups: list[dict[str, Any]], turns: dict[int, tuple[int, str]] | None = None
    ) -> None:
        self.groups = groups
        self.version = 0
        self.static = np.zeros(len(groups), ROW)
        self.scalars = np.zeros(len(groups), GROUP)
        self._lr = self.scalars["lr"]
        self._tensors: dict[int, Tensor] = {}  # rates that are
        self._on_device: dict[torch.device, tuple[int, np.ndarray]] = {}
        self.snapshot = make_container_snapshot([*groups], self._lr)
        self._rules: list[int | None] = [None] * len(groups)
        self._sets: list[JointSet | None] = [None] * len(groups)
        self._turns = {} if turns is None else turns
        for gone in self._turns.keys() - {id(group) for group in groups}:
            del self._turns[gone]
        for group in groups:
            self._turns.setdefault(id(group), turn_of(group))
        # groups to look at in every step: not accepted yet, or with a setting that can change in place
        self._open = set(range(len(groups)))
        self._edited: set[int] = set()  # those to look at until they are accepted
        self._roles = [group["role"] for group in groups]
        self._storage = [storage_of(group) for group in groups]
        self.players = [
            np.array([bool(g["params"]) and g["role"] == role for g in groups], bool)
            for role in ROLES
        ]

    def look(self) -> list[int]:
        """Take over new rates, and note which groups were edited in any other way; returns those."""
        edited = self.snapshot.changed()
        if edited:
            self._edited.update(edited)  # first, or an interrupt could have them forgotten
            for (
                index
            ) in edited:  # before they are read: an edit made meanwhile is seen the next time
                self.snapshot.note(index)
        return edited

    def check(self) -> list[int]:
        """The groups to accept before the next launch.

        Raises:
            ValueError, TypeError: one of them holds a setting that no rule accepts; names the group.
        """
        if not (self._open or self._edited):
            return []
        changed = sorted(self._open | self._edited)
        for index in changed:
            check_hyperparameters(self.groups[index], index)
        return changed

    def changed_roles(self, changed: Iterable[int]) -> bool:
        """Tell whether any of these groups changed sides."""
        return any(self.groups[index]["role"] != self._roles[index] for index in changed)

    def changed_storage(self, changed: Iterable[int]) -> bool:
        """Tell whether any of these groups is to be stored in another way."""
        return any(storage_of(self.groups[index]) != self._storage[index] for index in changed)

    def changed_families(self, changed: list[int]) -> list[int]:
        """Those of these groups that were accepted with a rule of Adam's and now have SGD's, or the other way round."""
        return [
            index
            for index in changed
            if (accepted := self._rules[index]) is not None
            and bool(accepted & Rule.SGD) != (self.groups[index]["rule"] == "sgd")
        ]

    def new_rates(self, changed: list[int]) -> np.ndarray | None:
        """Rates [groups], also those to be accepted, NaN where unknown; None if there is no news since last asked."""
        try:
            took_over = self.snapshot.took_over()
            self.version += took_over
        except BaseException:  # an interrupt that comes with the answer, which is not given again
            self.version += 1
            raise
        if not (took_over or changed):
            return None
        rates = self._lr.copy()
        rates[changed] = [_rate(self.groups[index]) for index in changed]
        return rates

    def accept(self, changed: list[int]) -> Accepted:
        """Take over groups that were checked."""
        before = self._content(changed)
        for index in changed:
            (self._open.add if is_volatile(self.groups[index]) else self._open.discard)(index)
        groups = [self.groups[index] for index in changed]
        _write(self.static, changed, [row_constants(group) for group in groups])
        _write(self.scalars, changed, [group_scalars(group) for group in groups])
        for index in changed:
            lr = self.groups[index]["lr"]
            if isinstance(lr, Tensor):
                self._tensors[index] = lr.detach()
            else:
                self._tensors.pop(index, None)
        self.version += self._content(changed) != before  # volatile groups come here at every step
        self._edited.clear()
        accepted = Accepted([], [])
        for index in changed:
            group = self.groups[index]
            if self.changes_rules([index]):
                accepted.new_rules.append(index)
            if self._turns[id(group)] != turn_of(group):
                accepted.new_turns.append(index)
            self._rules[index], self._turns[id(group)] = int(rule_of(group)), turn_of(group)
            self._sets[index] = joint_set(group)
        return accepted

    def changes_rules(self, changed: list[int]) -> bool:
        """Tell whether any of these groups has another rule, turn or joint set than was accepted."""
        groups = ((i, self.groups[i]) for i in changed)
        return any(
            self._rules[i] != rule_of(group)
            or self._turns[id(group)] != turn_of(group)
            or self._sets[i] != joint_set(group)
            for i, group in groups
        )

    @property
    def has_joint_sets(self) -> bool:
        """Tell whether any group that was accepted has a joint set."""
        return any(found is not None for found in self._sets)

    def scalars_for(self, device: torch.device) -> np.ndarray:
        """`scalars` as kernels on a device read them: of rates in tensors there, the addresses."""
        version, scalars = self._on_device.get(device, (-1, self.scalars))
        if version == self.version:
            return scalars
        scalars = self.scalars.copy()
        for index, lr in self._tensors.items():
            if lr.device == device:
                scalars["lr_address"][index] = lr.data_ptr()
                scalars["lr_is_double"][index] = lr.dtype is torch.float64
        self._on_device[device] = self.version, scalars
        return scalars

    def _content(self, groups: list[int]) -> tuple[bytes, bytes, list[int | None]]:
        """The values of these groups whose changes `version` counts."""
        tensors = [self._tensors.get(index) for index in groups]
        addresses = [None if lr is None else lr.data_ptr() for lr in tensors]
        return self.static[groups].tobytes(), self.scalars[groups].tobytes(), addresses

    def tensors(self) -> list[Tensor]:
        """Rates that are tensors."""
        return [*self._tensors.values()]

    def rates_live_on(self, device: torch.device) -> bool:
        """Tell whether a rate is in a tensor on this device, and the device is not the host."""
        return device.type != "cpu" and any(lr.device == device for lr in self._tensors.values())

    def rule(self, index: int) -> int:
        """The rule flags of a group that was accepted."""
        rule = self._rules[index]
        assert rule is not None
        return rule


def row_constants(group: dict[str, Any]) -> dict[str, float]:
    """The fields of a group's rows that step count and rate do not change."""
    rule = rule_of(group)
    if joint_set(group) is not None:
        rule &= ~Rule.EMA  # the launch that projects its parameters averages them too
    low, high = box_bounds(group, torch.float32) or (-math.inf, math.inf)
    decay = group["ema_decay"]
    constants = {
        "rule": int(rule),
        "grad_sign": -1.0 if group["maximize"] else 1.0,
        "weight_decay": as_number(group["weight_decay"]),
        "ema_weight": 0.0 if decay is None else _from_the_nearer_end(as_number(decay)),
        "mean_weight": 1.0 / as_integer(group["update_every"]) if sums_gradients(group) else 0.0,
        "low": low,
        "high": high,
    }
    if group["rule"] == "sgd":
        constants["momentum"] = as_number(group["momentum"])
        constants["one_minus_dampening"] = 1.0 - as_number(group["dampening"])
        return constants
    beta1, beta2 = map(as_number, group["betas"])
    constants["lerp_weight"] = _from_the_nearer_end(beta1)
    constants["beta2"], constants["one_minus_beta2"] = beta2, 1.0 - beta2
    constants["one_minus_dampening"] = 1.0
    return constants


def group_scalars(group: dict[str, Any]) -> dict[str, float]:
    """The scalars of a group from which the other fields of its rows are computed at every step."""
    scalars = {"lr": _rate(group), "update_every": as_integer(group["update_every"])}
    if group["rule"] == "sgd":
        return scalars  # without betas, the rate is not corrected
    beta1, beta2 = map(as_number, group["betas"])
    decay = as_number(group["weight_decay"]) if group["rule"] == "adamw" else 0.0
    eps = as_number(group["eps"])
    return {**scalars, "beta1": beta1, "beta2": beta2, "eps": eps, "decay": decay}


def _write(table: np.ndarray, indices: list[int], rows: list[dict[str, float]]) -> None:
    """Set rows of a structured array; fields that a row does not name become 0."""
    fresh = np.zeros(len(rows), table.dtype)
    # by columns: assigning the fields of one record after another costs more than the rest of an edit
    for name in {name: None for row in rows for name in row}:
        fresh[name] = [row.get(name, 0) for row in rows]
    table[indices] = fresh


def turn_of(group: dict[str, Any]) -> tuple[int, str]:
    """The settings to which the counts of a group that takes turns belong."""
    return as_integer(group["update_every"]), group["update_every_grads"]


def _from_the_nearer_end(decay: float) -> float:
    """The weight with which `interpolate` of csrc/update_rule.h lets a value decay; its sign says from which end.

    Of a decay of 1, with which a value stays, the smallest number that no device takes for 0: 0 is the other end's.
    """
    return max(1.0 - decay, _SMALLEST) if decay > 0.5 else -abs(decay)  # of -0.0 as well


def _rate(group: dict[str, Any]) -> float:
    """A rate as float64; NaN where only the device knows it.

    Of an infinite one the largest number, which float32 makes infinite again: a weight decay of 0 times infinity would
    be NaN, where torch does not multiply them.
    """
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.device.type != "cpu":
        return math.nan
    return max(-sys.float_info.max, min(as_number(lr), sys.float_info.max))
