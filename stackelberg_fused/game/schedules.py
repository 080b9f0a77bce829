"""Learning-rate schedules of a two-time-scale game, as torch schedulers."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..groups.rate_warnings import ROUNDING
from ..groups.rules import is_number
from ..warning import warn_caller


def _rate(value: float | Tensor) -> float:
    return float(value)


class _RoleFactorLR(LRScheduler):
    """Multiplies the rate of each group by a factor that depends on its role.

    Each step applies the quotient of two consecutive factors, so that schedulers can be chained.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        roles = {group.get("role") for group in optimizer.param_groups}
        if not roles <= {"body", "head"}:
            raise ValueError(
                f"{type(self).__name__}: every param group needs a role, 'body' or 'head'; is this a Stackelberg "
                "optimizer?"
            )
        self._has_warned = False
        super().__init__(optimizer, last_epoch)
        self._warn_if_body_is_faster()

    @abstractmethod
    def _factor(self, index: int, step: int) -> float:
        """Return the factor, > 0, on the initial rate of group `index` after `step` steps."""

    def get_lr(self) -> list[Any]:
        """Return the next rate of each group, computed from its current rate."""
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
        """Set the rates as in torch, and warn once if the body has become the faster player.

        Args:
            epoch: as in torch, where it is deprecated.
        """
        super().step(epoch)
        if hasattr(self, "_has_warned") and self.last_epoch > 0:
            self._warn_if_body_is_faster()

    def _warn_if_body_is_faster(self) -> None:
        if self._has_warned:
            return
        rates: dict[str, list[float]] = {"body": [], "head": []}
        for group in self.optimizer.param_groups:
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device.type != "cpu":
                return  # a read would wait for the device
            rates[group["role"]].append(_rate(lr))
        if all(rates.values()) and max(rates["body"]) > min(rates["head"]) * (1 + ROUNDING):
            self._warn(
                f"after {self.last_epoch} steps the body's learning rate ({max(rates['body']):g}) is above the head's "
                f"({min(rates['head']):g})"
            )

    def _warn(self, observation: str) -> None:
        self._has_warned = True
        warn_caller(
            f"{type(self).__name__}: {observation}: the body is meant to be the slow player"
        )


def _number(name: str, value: Any, least: float, most: float) -> float:
    """Return `value` as a float, or raise TypeError or ValueError unless it is a number in [least, most]."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not least <= number <= most:
        raise ValueError(f"{name} must be >= {least:g} and <= {most:g}, got {value}")
    return number


class TwoTimeScaleLR(_RoleFactorLR):
    """Learning rates that decay as powers of time, the body's at least as fast as the head's.

    After k steps a group's rate is its initial rate times (1 + k / offset) ** -exponent. Related theory of
    two-time-scale methods with stochastic gradients has (body, head) exponents of (1, 2/3) with an error of K**(-2/3)
    for a strongly convex Phi, and (3/5, 2/5) with K**(-2/5) for a weakly convex Phi (docs/algorithm.md).

    Args:
        optimizer: a Stackelberg optimizer, or any optimizer whose groups have a "role". `opt.player(role)` schedules
            one player.
        body_exponent, head_exponent: in [0, 1]; 0 keeps the rate constant.
        offset: the time scale of the decay in steps, > 0.
        last_epoch: as in torch.

    Warns:
        UserWarning: the body becomes the faster player at a later step, because its exponent is below the head's, or
            it is the faster player now.

    Raises:
        ValueError, TypeError: an argument does not fit, or a group has no role.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        >>> opt = sf.StackelbergSGD(sf.split_body_head(model, head="1"), lr=0.01)
        >>> schedule = sf.TwoTimeScaleLR(opt, offset=100.0)
        >>> for _ in range(100):
        ...     opt.step()
        ...     schedule.step()
        >>> [round(lr, 5) for lr in schedule.get_last_lr()]
        [0.005, 0.063]
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
        slowness = self.exponents["head"] - self.exponents["body"]
        if slowness > 0 and not self._has_warned:
            rates = [
                [_rate(lr) for lr, g in self._initial() if g["role"] == role]
                for role in ("body", "head")
            ]
            if all(rates) and max(rates[0]) > 0:
                ratio = min(rates[1]) / max(rates[0])
                crossing = self.offset * (ratio ** (1 / slowness) - 1)
                self._warn(
                    f"the body's rate decays more slowly than the head's and is above it from step {crossing:.3g} on"
                )

    def _initial(self) -> list[tuple[Any, dict[str, Any]]]:
        return list(zip(self.base_lrs, self.optimizer.param_groups, strict=True))

    def _factor(self, index: int, step: int) -> float:
        exponent = self.exponents[self.optimizer.param_groups[index]["role"]]
        return (1.0 + step / self.offset) ** -exponent


class AnnealedRatioLR(_RoleFactorLR):
    """Anneals the ratio of head rate to body rate, from large to `final_ratio`.

    A large ratio helps early, while the head is far from its best response. Over `steps` steps the rate of each head
    group moves geometrically from its initial value to `final_ratio` times the rate of the fastest body group. Body
    rates do not change. Chain it with a schedule of both players, or run it after a warm-up.

    Args:
        optimizer: a Stackelberg optimizer, or any optimizer whose groups have a "role".
        steps: the length of the annealing in optimizer steps, >= 1.
        final_ratio: > 0.
        last_epoch: as in torch.

    Raises:
        ValueError, TypeError: an argument does not fit, or a role has no group.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 1))
        >>> opt = sf.StackelbergSGD(sf.split_body_head(model, head="1"), lr=0.01)
        >>> schedule = sf.AnnealedRatioLR(opt, steps=2)
        >>> for _ in range(2):
        ...     opt.step()
        ...     schedule.step()
        ...     print([round(lr, 4) for lr in schedule.get_last_lr()])
        [0.01, 0.0316]
        [0.01, 0.01]
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
        body_rates = [
            _rate(group.get("initial_lr", group["lr"]))
            for group in optimizer.param_groups
            if group.get("role") == "body"
        ]
        if not body_rates or len(body_rates) == len(optimizer.param_groups):
            raise ValueError("AnnealedRatioLR needs param groups of both roles")
        self._fastest_body = max(body_rates)
        expect_equal_rates = getattr(optimizer, "_expect_equal_rates", None)
        if expect_equal_rates is not None:
            expect_equal_rates()  # otherwise the optimizer warns of rates that became equal
        super().__init__(optimizer, last_epoch)

    def _factor(self, index: int, step: int) -> float:
        group = self.optimizer.param_groups[index]
        if group["role"] == "body":
            return 1.0
        initial = _rate(group["initial_lr"])
        if initial <= 0 or self._fastest_body <= 0:
            return 1.0
        log_change = math.log(self.final_ratio * self._fastest_body / initial)
        return math.exp(log_change * min(step / self.steps, 1.0))
