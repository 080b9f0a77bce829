"""Learning rates of a two-time-scale game, as torch schedulers."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..groups.rate_warnings import ROUNDING
from ..warning import warn_caller


def _rate(value: float | Tensor) -> float:
    return float(value)


class _ByRole(LRScheduler):
    """A factor on the rate of each group, by its role; multiplied in step by step, so that it can be chained."""

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        roles = {group.get("role") for group in optimizer.param_groups}
        if not roles <= {"body", "head"}:
            raise ValueError(
                f"{type(self).__name__}: every param group needs a role, 'body' or 'head'; is this a Stackelberg "
                "optimizer?"
            )
        self._has_warned = False
        super().__init__(optimizer, last_epoch)
        self._watch()

    @abstractmethod
    def _factor(self, index: int, step: int) -> float:
        """What a group's rate is multiplied by after so many steps, all in all; > 0."""

    def get_lr(self) -> list[Any]:
        """The rates of all groups, from those that they have."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        if getattr(self, "_is_initial", False) or self.last_epoch == 0:
            return rates
        step = self.last_epoch
        return [
            lr * (self._factor(i, step) / self._factor(i, step - 1)) for i, lr in enumerate(rates)
        ]

    def _get_closed_form_lr(self) -> list[Any]:
        return [lr * self._factor(i, self.last_epoch) for i, lr in enumerate(self.base_lrs)]

    def step(self, epoch: int | None = None) -> None:
        """As in torch; warns once if the body has become the faster player."""
        super().step(epoch)
        if hasattr(self, "_has_warned") and self.last_epoch > 0:
            self._watch()

    def _watch(self) -> None:
        if self._has_warned:
            return
        rates: dict[str, list[float]] = {"body": [], "head": []}
        for group in self.optimizer.param_groups:
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device.type != "cpu":
                return  # reading it would wait for the device
            rates[group["role"]].append(_rate(lr))
        if all(rates.values()) and max(rates["body"]) > min(rates["head"]) * (1 + ROUNDING):
            self._warn(
                f"after {self.last_epoch} steps the body's learning rate ({max(rates['body']):g}) is above the head's "
                f"({min(rates['head']):g})"
            )

    def _warn(self, what: str) -> None:
        self._has_warned = True
        warn_caller(f"{type(self).__name__}: {what}: the body is meant to be the slow player")


def _number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be >= {least:g} and <= {most:g}, got {value}")
    return float(value)


class TwoTimeScaleLR(_ByRole):
    """Rates that decay as powers of time, the body's at least as fast as the head's.

    After k steps a group has its first rate times (1 + k / offset) ** -exponent. For stochastic gradients related
    two-time-scale theory has (body, head) exponents of (1, 2/3), with an error of K**(-2/3) for a strongly convex Phi,
    and (3/5, 2/5), with K**(-2/5) for a weakly convex one (docs/algorithm.md).

    Args:
        optimizer: a Stackelberg optimizer, or any whose groups carry a "role"; `opt.player(role)` schedules one.
        body_exponent, head_exponent: in [0, 1]; 0 keeps the rate.
        offset: steps after which the decay sets in, > 0.
        last_epoch: as in torch.

    Warns:
        UserWarning: the body's exponent is below the head's, so that it would become the faster player, or it is.

    Raises:
        ValueError, TypeError: arguments that do not fit; a group without a role.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        body_exponent: float = 1.0,
        head_exponent: float = 2 / 3,
        offset: float = 1000.0,
        last_epoch: int = -1,
    ) -> None:
        self.exponents = {
            "body": _number("body_exponent", body_exponent, 0.0, 1.0),
            "head": _number("head_exponent", head_exponent, 0.0, 1.0),
        }
        self.offset = _number("offset", offset, 1e-9, 1e18)
        super().__init__(optimizer, last_epoch)
        if body_exponent < head_exponent and not self._has_warned:
            rates = [
                [_rate(lr) for lr, g in self._initial() if g["role"] == role]
                for role in ("body", "head")
            ]
            if all(rates) and max(rates[0]) > 0:
                ratio = min(rates[1]) / max(rates[0])
                crossing = self.offset * (ratio ** (1 / (head_exponent - body_exponent)) - 1)
                self._warn(
                    f"the body's rate decays more slowly than the head's and is above it from step {crossing:.3g} on"
                )

    def _initial(self) -> list[tuple[Any, dict[str, Any]]]:
        return list(zip(self.base_lrs, self.optimizer.param_groups, strict=True))

    def _factor(self, index: int, step: int) -> float:
        exponent = self.exponents[self.optimizer.param_groups[index]["role"]]
        return (1.0 + step / self.offset) ** -exponent


class AnnealedRatioLR(_ByRole):
    """A ratio between head and body that is large early, where the head is far from its best response, and ends equal.

    Each head group's rate goes geometrically, over `steps` steps, from its own to `final_ratio` times that of the
    fastest body group; bodies keep theirs. Chain it with a schedule of both, or put a warm-up before it.

    Args:
        optimizer: a Stackelberg optimizer, or any whose groups carry a "role".
        steps: > 0.
        final_ratio: > 0.
        last_epoch: as in torch.

    Raises:
        ValueError, TypeError: arguments that do not fit; there are not both players.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        steps: int,
        final_ratio: float = 1.0,
        last_epoch: int = -1,
    ) -> None:
        self.steps = _number("steps", steps, 1, 1e18)
        self.final_ratio = _number("final_ratio", final_ratio, 1e-9, 1e9)
        bodies = [
            _rate(group.get("initial_lr", group["lr"]))
            for group in optimizer.param_groups
            if group.get("role") == "body"
        ]
        if not bodies or len(bodies) == len(optimizer.param_groups):
            raise ValueError("AnnealedRatioLR needs param groups of both roles")
        self._fastest_body = max(bodies)
        expect_equal_rates = getattr(optimizer, "_expect_equal_rates", None)
        if expect_equal_rates is not None:
            expect_equal_rates()  # or it would warn of a scheduler that made them so
        super().__init__(optimizer, last_epoch)

    def _factor(self, index: int, step: int) -> float:
        group = self.optimizer.param_groups[index]
        if group["role"] == "body":
            return 1.0
        first = _rate(group["initial_lr"])
        if first <= 0 or self._fastest_body <= 0:
            return 1.0
        change = math.log(self.final_ratio * self._fastest_body / first)
        return math.exp(change * min(step / self.steps, 1.0))
