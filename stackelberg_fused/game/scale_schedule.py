"""One factor for the rates of all groups: a schedule that keeps their ratios by construction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..groups.rules import is_number


class ScaleSchedule(LRScheduler):
    """Sets the rate of every group to its own initial rate times `fn(step)`; see `scale_schedule`."""

    def __init__(
        self, optimizer: Optimizer, fn: Callable[[int], float], last_epoch: int = -1
    ) -> None:
        if not callable(fn):
            raise TypeError(
                f"scale_schedule(opt, fn): fn must be callable, step -> factor, got {fn!r}"
            )
        self.fn = fn
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """Return the next rate of each group."""
        factor = self._factor(self.last_epoch)
        return [_initial(group) * factor for group in self.optimizer.param_groups]

    _get_closed_form_lr = get_lr  # torch's names for both ways

    def _factor(self, step: int) -> float:
        """Return fn(step), or raise TypeError or ValueError before any rate is changed."""
        found = self.fn(step)
        if not is_number(found):
            raise TypeError(
                f"scale_schedule: fn({step}) must be a number, a factor, but it is {found!r}"
            )
        factor = float(found)
        if not 0.0 <= factor < math.inf:
            raise ValueError(
                f"scale_schedule: fn({step}) must be finite and >= 0, but it is {factor}"
            )
        return factor

    def state_dict(self) -> dict[str, Any]:
        """Return the step; `fn` is the caller's, and the initial rates are in the optimizer's state."""
        return {
            key: value
            for key, value in super().state_dict().items()
            if key not in ("fn", "base_lrs")
        }


def _initial(group: dict[str, Any]) -> Any:
    """The initial rate of a group; that of a group that was added later is noted here."""
    if "initial_lr" not in group:
        lr = group["lr"]
        group["initial_lr"] = lr.clone() if isinstance(lr, Tensor) else lr
    return group["initial_lr"]


def scale_schedule(
    optimizer: Optimizer, fn: Callable[[int], float], last_epoch: int = -1
) -> ScaleSchedule:
    """Make a scheduler that sets the rate of every group to its own initial rate times `fn(step)`.

    There is one factor for all groups, so the ratios between their rates stay what they are, floors included. It is a
    torch scheduler of any torch optimizer. What it does beyond `LambdaLR(opt, fn)`: it refuses a factor that is not
    finite or is negative, before a rate is changed; it goes on where groups are added; its state holds no rates, so an
    edited `group["initial_lr"]` and rates of another run count from the next step on; any `fn` can be saved with it.

    Args:
        optimizer: any torch optimizer; `opt.player(role)` schedules one player.
        fn: maps the number of steps taken, 0 at first, to a factor; see `warmup_cosine`, `warmup_linear` and
            `warmup_stable_decay`.
        last_epoch: as in torch.

    Raises:
        TypeError: `fn` cannot be called. In a step: a factor that is no number.
        ValueError: in a step: a factor that is negative or not finite.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> opt = sf.StackelbergAdamW(sf.split_body_head(model, head="1"), lr=1e-3)
        >>> schedule = sf.scale_schedule(opt, sf.warmup_cosine(100, warmup=3))
        >>> [group["lr"] for group in opt.param_groups]
        [0.00025, 0.0025]
    """
    return ScaleSchedule(optimizer, fn, last_epoch)


@dataclass(frozen=True)
class Warmup:
    """Factors of a warm-up, of a plateau and of a decay to a floor, by step; see the functions that make one.

    Attributes:
        warmup: steps of the warm-up: step k < warmup has (k + 1) / (warmup + 1).
        decay_from, steps: between these two the factor goes from 1 to `floor`, where it stays.
        floor: a share of each group's own peak.
        is_cosine: along half a cosine; else along a line.
    """

    warmup: int
    decay_from: int
    steps: int
    floor: float
    is_cosine: bool

    def __call__(self, step: int) -> float:
        """Return the factor of a step."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if step >= self.steps:
            return self.floor
        progress = max(0.0, (step - self.decay_from) / (self.steps - self.decay_from))
        left = (1.0 + math.cos(math.pi * progress)) / 2 if self.is_cosine else 1.0 - progress
        return self.floor + (1.0 - self.floor) * left


def warmup_cosine(steps: int, *, warmup: int = 0, floor: float = 0.0) -> Warmup:
    """Factors for `scale_schedule`: a linear warm-up to 1, then half a cosine down to `floor` at step `steps`.

    Args:
        steps: of the whole run, > `warmup`.
        warmup: steps >= 0; the first has the factor 1 / (warmup + 1), so it moves.
        floor: in [0, 1], a share of each group's own peak.

    Raises:
        ValueError, TypeError: an argument does not fit.

    Example:
        >>> fn = sf.warmup_cosine(100, warmup=9, floor=0.1)
        >>> [fn(0), fn(9), round(fn(100), 3)]
        [0.1, 1.0, 0.1]
    """
    return _warmup(steps, warmup, steps - warmup, floor, is_cosine=True)


def warmup_linear(steps: int, *, warmup: int = 0, floor: float = 0.0) -> Warmup:
    """Factors for `scale_schedule`: a linear warm-up to 1, then a line down to `floor` at step `steps`.

    Args:
        steps: of the whole run, > `warmup`.
        warmup: steps >= 0; the first has the factor 1 / (warmup + 1), so it moves.
        floor: in [0, 1], a share of each group's own peak.

    Raises:
        ValueError, TypeError: an argument does not fit.

    Example:
        >>> fn = sf.warmup_linear(100, warmup=20)
        >>> [fn(20), fn(60), fn(100)]
        [1.0, 0.5, 0.0]
    """
    return _warmup(steps, warmup, steps - warmup, floor, is_cosine=False)


def warmup_stable_decay(steps: int, *, decay: int, warmup: int = 0, floor: float = 0.0) -> Warmup:
    """Factors for `scale_schedule`: a linear warm-up to 1, a plateau, then a line to `floor` in `decay` steps.

    Args:
        steps, warmup, floor: as of `warmup_cosine`.
        decay: > 0 steps; `warmup + decay` <= `steps`.

    Raises:
        ValueError, TypeError: an argument does not fit.

    Example:
        >>> fn = sf.warmup_stable_decay(100, decay=20, warmup=10)
        >>> [fn(10), fn(80), fn(90)]
        [1.0, 1.0, 0.5]
    """
    return _warmup(steps, warmup, decay, floor, is_cosine=False)


def _warmup(steps: int, warmup: int, decay: int, floor: float, is_cosine: bool) -> Warmup:
    for name, value in (("steps", steps), ("warmup", warmup), ("decay", decay)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an integer, got {value!r}")
    if warmup < 0 or decay < 1 or warmup + decay > steps:
        raise ValueError(
            f"warmup must be >= 0 and leave room for a decay within steps={steps}, got warmup={warmup}, decay={decay}"
        )
    if not is_number(floor):
        raise TypeError(f"floor must be a number, got {floor!r}")
    if not 0.0 <= floor <= 1.0:
        raise ValueError(f"floor must be in [0, 1], a share of each group's peak, got {floor}")
    return Warmup(warmup, steps - decay, steps, float(floor), is_cosine)
