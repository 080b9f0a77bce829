"""Settings that somebody gave and that reach no parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..warning import warn_caller
from .param_groups import BY_ROLE, ROLES, param_label
from .rate_warnings import ROUNDING
from .rules import as_number
from .schemes import HALF_PRECISION

Groups = Sequence[dict[str, Any]]


class LostSettings:
    """Warns, once each, of settings that were given and have no effect.

    Groups and their rates are known when the optimizer is built, and there the warning points at the line that is to be
    changed. What depends on parameters is looked for at the first step: until then they may be unfrozen, and the model
    may be moved to another dtype.

    Args:
        given: the constructor's keyword arguments, those that were passed.

    Attributes:
        met_complete_group: a group came with settings that only an optimizer of ours writes into one.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        ratio = float(given.get("head_lr_ratio", 1.0))
        self._ratio = None if ratio == 1.0 else ratio
        self._is_taken = False  # by a head group
        self._all_have_rates = True
        self._by_role = {name: given[name] for name in BY_ROLE if isinstance(given.get(name), dict)}
        self._warned: set[str] = set()
        self.met_complete_group = False

    def note(self, group: Mapping[str, Any]) -> None:
        """Take note of a group as it was given, before it is completed."""
        if "lr" not in group:
            self._all_have_rates = False
            self._is_taken |= group.get("role") == "head"
        self.met_complete_group |= "rule" in group and all(name in group for name in BY_ROLE)

    def look_at_groups(self, groups: Groups, rate: Any, max_grad_norm: Any) -> None:
        """Warn of a `head_lr_ratio` that no head group took, and of settings of a role that no group has.

        Args:
            groups: completed.
            rate: the constructor's `lr`.
            max_grad_norm: the optimizer's.
        """
        if any(group["role"] == "head" for group in groups):
            self._look_at_rates(groups, rate)
        elif self._ratio is not None:
            self._warn("ratio", _ratio_without_head(self._ratio))
        self._look_at_roles(groups, max_grad_norm)

    def _look_at_roles(self, groups: Groups, max_grad_norm: Any) -> None:
        roles = {group["role"] for group in groups}
        by_role = dict(self._by_role)
        if isinstance(max_grad_norm, dict):
            by_role["max_grad_norm"] = max_grad_norm
        for role in ROLES:
            names = [name for name in by_role if _says_of(role, name, by_role[name])]
            if names and role not in roles:
                self._warn("role", _role_without_group(role, names))

    def _look_at_rates(self, groups: Groups, rate: Any) -> None:
        heads = [group for group in groups if group["role"] == "head"]
        if self._ratio is None or self._is_taken:
            return
        rates = [group["lr"] for group in heads]
        slow = [rate, *(group["lr"] for group in groups if group["role"] == "body")]
        if any(_is_product(fast, self._ratio, lr) for fast in rates for lr in slow):
            return  # it is there, only somebody else multiplied
        # a rate that the head alone has, and that is not the default, was written there on purpose
        if self._all_have_rates or all(_is_product(lr, 1.0, rate) for lr in rates):
            self._warn("ratio", _ratio_overwritten(self._ratio, rates[0], rate))

    def look_before_stepping(self, groups: Groups, max_grad_norm: Any) -> None:
        """Warn of a head that is frozen, of masters, and of norms that were set since; before the first step."""
        self._look_at_roles(groups, max_grad_norm)
        if self._ratio is not None and _is_frozen(g for g in groups if g["role"] == "head"):
            self._warn("ratio", _ratio_of_frozen_head(self._ratio))
        self._look_at_masters(groups)

    def _look_at_masters(self, groups: Groups) -> None:
        for master in dict.fromkeys(group["master"] for group in groups):
            trained = list(_trained_with(master, groups))
            if master is None:
                rounded = [label for label, p in trained if p.dtype is torch.bfloat16]
                if rounded:
                    self._warn("rounding", _rounded_to_nearest(rounded[0], len(rounded)))
            elif trained and not any(p.dtype in HALF_PRECISION for _, p in trained):
                self._warn("master", _master_of_exact(master, trained[0][1].dtype))

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn_caller(message)


def _is_product(rate: Any, factor: float, base: Any) -> bool:
    """Tell whether a rate is another one times a factor. Rates on a device are not read, and count as neither."""
    if any(isinstance(lr, Tensor) and lr.device.type != "cpu" for lr in (rate, base)):
        return factor == 1.0 and rate is base
    number, expected = as_number(rate), factor * as_number(base)
    # a float32 tensor is as far from the product of floats
    tolerance = 1e-6 if isinstance(rate, Tensor) or isinstance(base, Tensor) else ROUNDING
    return abs(number - expected) <= tolerance * abs(expected)


def _is_trained(param: Tensor) -> bool:
    return param.requires_grad or param.grad is not None


def _is_frozen(groups: Iterator[dict[str, Any]]) -> bool:
    """Tell whether groups have parameters, none of which is trained. One without any may be another process's."""
    params = [param for group in groups for param in group["params"]]
    return bool(params) and not any(map(_is_trained, params))


def _trained_with(master: str | None, groups: Groups) -> Iterator[tuple[str, Tensor]]:
    """The trained parameters of groups with this master, and their names in messages."""
    for index, group in enumerate(groups):
        # a differentiable step knows no master
        if group["master"] == master and not group.get("differentiable"):
            for position, param in enumerate(group["params"]):
                if _is_trained(param):
                    yield param_label(index, group, position), param


def _says_of(role: str, name: str, value: dict[str, Any]) -> bool:
    """Tell whether a setting by role says anything of a role that would not be so anyway."""
    default = BY_ROLE.get(name)
    return role in value and (value[role] is not default and value[role] != default)


def _ratio_overwritten(ratio: float, found: Any, rate: Any) -> str:
    own = f"{as_number(rate) * ratio:g}" if not isinstance(rate, Tensor) else "..."
    lr = found if isinstance(found, Tensor) else f"{as_number(found):g}"
    return (
        f"head_lr_ratio={ratio:g} has no effect: every head group came with an lr of its own ({lr}). Wrappers that are "
        "optimizers (ZeroRedundancyOptimizer, SAM) and factories of groups (mup, LoRA+) write one into each group "
        f"first. Give the head group its own lr before them, {{'params': ..., 'role': 'head', 'lr': {own}}}, and leave "
        "head_lr_ratio out"
    )


def _ratio_without_head(ratio: float) -> str:
    return (
        f"head_lr_ratio={ratio:g} has no effect: no param group has role 'head'. Pass "
        "split_body_head(model) in place of model.parameters(), or group dicts with 'role': 'head'; leave "
        "head_lr_ratio out where one rate is meant"
    )


def _ratio_of_frozen_head(ratio: float) -> str:
    return (
        f"head_lr_ratio={ratio:g} has no effect: every parameter of the head is frozen. Give role 'head' to layers "
        "that are trained (split_body_head(model, head=...); with LoRA the lora_B matrices or modules_to_save), or "
        "unfreeze the head"
    )


def _role_without_group(role: str, names: list[str]) -> str:
    verb = "names" if len(names) == 1 else "name"
    return (
        f"{', '.join(names)} {verb} the role {role!r}, which no param group has: without effect. Give groups "
        f"'role': {role!r} (split_body_head makes them), or pass one value for all in place of a dict by role"
    )


def _master_of_exact(master: str, dtype: torch.dtype) -> str:
    return (
        f"master={master!r} has no effect: the parameters that it is for are {dtype}, which is updated as it is. Leave "
        "it out, or move the model to torch.bfloat16"
    )


def _rounded_to_nearest(label: str, count: int) -> str:
    others = f" and {count - 1} others" if count > 1 else ""
    return (
        f"{label}{others}: bfloat16 parameters are rounded to nearest after every step (master=None), which loses "
        "steps below half their precision; it is the one scheme that trained measurably worse. Pass "
        "master='stochastic', which needs no memory, or 'split16', which keeps float32 weights in 2 bytes more"
    )
