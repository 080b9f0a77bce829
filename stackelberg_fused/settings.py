"""The settings of param groups: what was accepted of them, and which were edited since."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .groups import ROLES, check_settings
from .rules import Rule, as_number, is_volatile, rule_of
from .tables import DOUBLES, GROUP, ROW
from .watch import make_watch


class GroupSettings:
    """One row of constants and scalars per param group, which the rows of every table are made from.

    Schedulers replace the rate of every group at every step, so a rate that is a plain number is taken over on sight,
    without a Python call per group; any other edit is checked first, and accepted when nothing can fail any more.

    Args:
        groups: the optimizer's param groups.

    Attributes:
        static: ROW array [groups]: what a row keeps while only rate and step count change.
        scalars: GROUP array [groups]: what the rest of a row is computed from.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.groups = groups
        self.static = np.zeros(len(groups), ROW)
        self.scalars = np.zeros(len(groups), GROUP)
        self._lr = self.scalars["lr"]
        self._tensors: dict[int, Tensor] = {}  # rates that are
        self._watch = make_watch([*groups], self._lr)
        self._rules: list[int | None] = [None] * len(groups)
        # groups to look at in every step: not accepted yet, or with a setting that can change in place
        self._open = set(range(len(groups)))
        self._edited: set[int] = set()  # those to look at until they are accepted
        self._roles = [group["role"] for group in groups]
        self._players = [
            np.array([bool(g["params"]) and g["role"] == role for g in groups], bool)
            for role in ROLES
        ]

    def look(self) -> list[int]:
        """Take over new rates, and note which groups were edited in any other way; returns those."""
        edited = self._watch.changed()
        if edited:
            for (
                index
            ) in edited:  # before they are read: an edit made meanwhile is seen the next time
                self._watch.note(index)
            self._edited.update(edited)
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
            check_settings(self.groups[index], index)
        return changed

    def changed_roles(self, changed: list[int]) -> bool:
        """Whether any of these groups changed sides."""
        return any(self.groups[index]["role"] != self._roles[index] for index in changed)

    def changed_families(self, changed: list[int]) -> list[int]:
        """Those of these groups that were accepted with a rule of Adam's and now have SGD's, or the other way round."""
        return [
            index
            for index in changed
            if self._rules[index] is not None
            and bool(self._rules[index] & Rule.SGD) != (self.groups[index]["rule"] == "sgd")
        ]

    def new_rates(self, changed: list[int]) -> tuple[np.ndarray, np.ndarray] | None:
        """Rates of body and head groups, also those still to be accepted; None if there is no news since last asked."""
        if not (self._watch.took_over() or changed):
            return None
        rates = self._lr.copy()
        rates[changed] = [_rate(self.groups[index]) for index in changed]
        known = ~np.isnan(rates)
        body, head = self._players
        return rates[body & known], rates[head & known]

    def accept(self, changed: list[int]) -> list[int]:
        """Take over groups that were checked; returns those that follow another rule than before."""
        if not changed:
            return []
        for index in changed:
            (self._open.add if is_volatile(self.groups[index]) else self._open.discard)(index)
        # by columns: assigning to a record's fields one by one costs more than the rest of an edit
        numbers = np.array([_numbers(self.groups[index]) for index in changed]).T
        for name, column in zip(_CONSTANTS, numbers[: len(_CONSTANTS)], strict=True):
            self.static[name][changed] = column
        for name, column in zip(DOUBLES, numbers[len(_CONSTANTS) :], strict=True):
            self.scalars[name][changed] = column
        for index in changed:
            lr = self.groups[index]["lr"]
            if isinstance(lr, Tensor):
                self._tensors[index] = lr.detach()
            else:
                self._tensors.pop(index, None)
        self._edited.clear()
        flipped = [i for i in changed if self._rules[i] != self.rule(i)]
        for index in flipped:
            self._rules[index] = self.rule(index)
        return flipped

    def scalars_for(self, device: torch.device) -> np.ndarray:
        """`scalars` as kernels on a device read them: of rates in tensors there, the addresses."""
        scalars = self.scalars.copy()
        for index, lr in self._tensors.items():
            if lr.device == device:
                scalars["lr_address"][index] = lr.data_ptr()
                scalars["lr_is_double"][index] = lr.dtype is torch.float64
        return scalars

    def rates_live_on(self, device: torch.device) -> bool:
        """Whether a rate is in a tensor on this device, and the device is not the host."""
        return device.type != "cpu" and any(lr.device == device for lr in self._tensors.values())

    def rule(self, index: int) -> int:
        """The rule flags of a group."""
        return int(self.static["rule"][index])


# the fields of a row that step count and rate do not change
_CONSTANTS = (
    "rule",
    "grad_sign",
    "weight_decay",
    "lerp_weight",
    "beta2",
    "one_minus_beta2",
    "momentum",
    "one_minus_dampening",
)


def _numbers(group: dict[str, Any]) -> tuple[float, ...]:
    """The fields _CONSTANTS and DOUBLES of a group."""
    sign = -1.0 if group["maximize"] else 1.0
    lr, weight_decay = _rate(group), as_number(group["weight_decay"])
    row = (int(rule_of(group)), sign, weight_decay)
    if group["rule"] == "sgd":
        momentum, dampening = as_number(group["momentum"]), as_number(group["dampening"])
        # no betas: its rate is not corrected
        return (*row, 0.0, 0.0, 0.0, momentum, 1.0 - dampening, lr, 0.0, 0.0, 0.0, 0.0)
    beta1, beta2 = map(as_number, group["betas"])
    # from the nearer end
    lerp_weight = 1.0 - beta1 if beta1 > 0.5 else -beta1
    decay = weight_decay if group["rule"] == "adamw" else 0.0
    row = (*row, lerp_weight, beta2, 1.0 - beta2, 0.0, 1.0)
    return (*row, lr, beta1, beta2, as_number(group["eps"]), decay)


def _rate(group: dict[str, Any]) -> float:
    """A rate as float64; NaN where only the device knows it."""
    lr = group["lr"]
    return math.nan if isinstance(lr, Tensor) and lr.device.type != "cpu" else as_number(lr)
