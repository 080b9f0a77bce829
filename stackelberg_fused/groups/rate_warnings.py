"""Rates that make no two-time-scale game, and schedulers that end several rates as one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..native.tables import LARGEST_FLOAT
from ..warning import warn_caller
from .live_schedulers import Groups, are_set_apart, schedulers_of
from .scheduler_traps import (
    TRAPS,
    are_different,
    floor_by_eps,
    is_warming_up,
    may_follow,
    trap_of,
)

ROUNDING = 1e-9  # relative: what chained schedules make of equal rates, and of a rate of zero
SAME = 1e-6  # relative: as far apart are equal rates in float32 tensors
LARGE = 1e100  # products of rates below it are finite
STEPS = 2  # at equal rates: functions of time may meet for one
VALUES = 3  # of equal rates, where each group has a function of its own: they may meet for as long as an epoch


@dataclass
class _Together:
    """Rates that are equal for a reason which is not known: they may only have met.

    Attributes:
        are_set_apart: groups have functions of their own.
        rate: the last of all.
        steps: at equal rates.
        values: that the rates have had meanwhile.
    """

    are_set_apart: bool
    rate: float = 0.0
    steps: int = 0
    values: set[float] = field(default_factory=set)

    def is_for_good(self) -> bool:
        """Tell whether this is no crossing any more."""
        return len(self.values) >= VALUES if self.are_set_apart else self.steps >= STEPS


class RatioWatch:
    """Warns, once each, when the body becomes the faster player or a scheduler makes all rates equal.

    A schedule that keeps the ratios between rates multiplies all of them by one number: then there is nothing to look
    at. The first time that ratios change, it looks for a scheduler that is going to end them. Every step under a
    scheduler comes here, so the usual answer takes a few operations.

    Rates that a known scheduler makes equal are told at once, by its type and settings. Where the cause is not known,
    they may only cross, and have to stay together.

    Attributes:
        together: rates that do; while there are any, `look_again` is to be told of steps without new rates.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []  # of the groups
        self._first = np.zeros(0)  # float64 [groups]: the rates they came with; NaN: not known yet
        self._judged: np.ndarray | None = None  # float64 [groups]: rates that were looked at
        self._sides: list[np.ndarray] = []  # indices of the groups of each player that has some
        self._was_loaded = False
        self._was_searched = False
        # each search takes long: after 1, 2, 4, ... of these
        self._changes = 0  # of ratios, until all schedulers are known
        self._meetings = 0  # of rates
        self._are_set_apart = self._is_warming_up = False  # by what was found last
        self.together: _Together | None = None
        self._largest = 0.0  # rate so far
        self._warned: set[str] = set()

    def expect_equal(self) -> None:
        """Not to warn of rates that become equal: they are meant to."""
        self._warned.add("collapse")

    def follow(self, groups: Groups) -> None:
        """Take up the groups of an engine: more or fewer than before, or all others, where a state was loaded."""
        ids = [id(group) for group in groups]
        known = dict(zip(self._ids, self._first.tolist(), strict=True))
        self._judged, self._sides, self.together = None, [], None
        if ids and len(ids) == len(self._ids) and known.keys().isdisjoint(ids):
            self._was_loaded = True
        else:
            self._first = np.array([known.get(i, np.nan) for i in ids], np.float64)
        self._ids = ids

    def look_again(self, groups: Groups) -> None:
        """Count a step at the rates that were looked at last."""
        if self.together is not None:
            self.together.steps += 1
            self._judge_together(groups)

    def look(
        self,
        rates: np.ndarray,
        body: np.ndarray,
        head: np.ndarray,
        groups: Groups,
        is_step: bool = True,
    ) -> None:
        """Look at new rates.

        Args:
            rates: float64 [groups]; NaN where only the device knows it.
            body, head: bool [groups]: the players, without groups that have no parameters.
            groups: those that `follow` was told of.
            is_step: of both players, or of the body: in a step of the game the head may take many.
        """
        if self.together is not None:  # also equal rates keep their ratios
            pass
        elif self._was_searched:  # they have changed out of proportion before
            if self._is_in_order(rates) or self._is_in_proportion(rates):
                return
        elif self._is_in_proportion(rates):
            return
        known, sizes = ~np.isnan(rates), np.abs(rates)
        self._note(rates, body, head, known)
        usual = sizes[known & (sizes <= LARGEST_FLOAT)]  # others are infinite
        self._largest = max(self._largest, float(usual.max(initial=0.0)))
        self._look_at_order(sizes[body & known], sizes[head & known])
        if "collapse" not in self._warned:
            self._look_at_ratios(sizes, known & (body | head), groups, is_step)

    def _note(
        self, rates: np.ndarray, body: np.ndarray, head: np.ndarray, known: np.ndarray
    ) -> None:
        """Have the next rates compared with these, if they are usual ones."""
        are_usual = bool(np.abs(rates[known]).max(initial=0.0) < LARGE)
        self._judged = rates if are_usual else None
        sides = [np.flatnonzero(player & known) for player in (body, head)]
        self._sides = [side for side in sides if len(side)] if are_usual else []

    def _is_in_proportion(self, rates: np.ndarray) -> bool:
        return self._judged is not None and _are_in_proportion(rates, self._judged)

    def _is_in_order(self, rates: np.ndarray) -> bool:
        """Tell whether every head group is faster than every body group, or one player has two rates at least."""
        if not self._sides:
            return False
        slow, fast = rates.take(self._sides[0]), rates.take(self._sides[-1])
        lowest = slow.max() if len(self._sides) > 1 else slow.min()
        highest = fast.min() if len(self._sides) > 1 else fast.max()
        if not 0.0 < lowest < (1 - SAME) * highest:
            return False
        self._largest = max(self._largest, float(fast.max()))
        return True

    def _look_at_order(self, body: np.ndarray, head: np.ndarray) -> None:
        if not (len(body) and len(head)) or self._is_over(body.max()):
            return
        fastest, slowest = body.max(), head.min()
        if fastest * (1 - ROUNDING) > slowest:
            self._warn(
                "order",
                f"the body's learning rate ({_said(fastest)}) is above the head's ({_said(slowest)}): "
                "the body is meant to be the slow part",
            )

    def _look_at_ratios(
        self, rates: np.ndarray, trained: np.ndarray, groups: Groups, is_step: bool
    ) -> None:
        self._first = np.where(np.isnan(self._first), rates, self._first)
        before, now = self._first[trained], rates[trained]
        was_loaded, self._was_loaded = self._was_loaded, False
        together, self.together = self.together, None
        if not are_different(before.tolist()):
            self._first = rates  # by now they may be
        elif _are_equal(now[before > 0]) and not self._is_over(now.max()):
            if was_loaded and are_different([_initial(group) for group in groups]):
                self._first = rates  # of a run whose schedule ended so, which was told
            elif was_loaded:
                self._tell_of_equal_rates(
                    float(now.max()),
                    groups,
                    "the state of an optimizer with a single rate was loaded",
                )
            else:
                self.together = together or self._meet(float(now.max()), groups)
                self._count_together(float(now.max()), groups, is_step)
        elif was_loaded:
            self._first = rates
        elif not (self._was_searched or _are_in_proportion(now, before)):
            self._changes += 1
            if _is_power_of_two(self._changes):  # others may be stepped later
                self._search(groups)

    def _search(self, groups: Groups) -> None:
        """Look for a scheduler that is going to end rates as one."""
        schedulers = schedulers_of(groups, TRAPS)
        trap = trap_of(groups, self._first_by_id(), schedulers)
        if trap is not None:
            self._warn("collapse", f"different learning rates end as one: {trap}")
        self._was_searched = trap is not None or not may_follow(schedulers, self._first_by_id())

    def _meet(self, rate: float, groups: Groups) -> _Together | None:
        """Tell of rates that a scheduler has just made equal, or begin to count how long they are."""
        self._meetings += 1
        if _is_power_of_two(self._meetings):
            schedulers = schedulers_of(groups, TRAPS)
            self._are_set_apart = are_set_apart(schedulers)
            if self._was_explained(rate, groups, schedulers):
                return None
        return None if self._is_warming_up else _Together(self._are_set_apart)

    def _was_explained(self, rate: float, groups: Groups, schedulers: list[Any]) -> bool:
        """Tell of the scheduler that has made rates equal, if it is known."""
        self._is_warming_up = is_warming_up(schedulers)
        why = trap_of(groups, self._first_by_id(), schedulers) or floor_by_eps(schedulers, rate)
        if why is not None:
            self._tell_of_equal_rates(rate, groups, why)
        return why is not None

    def _count_together(self, rate: float, groups: Groups, is_step: bool) -> None:
        if self.together is not None:
            self.together.steps += is_step
            self.together.rate = rate
            self.together.values.add(rate)
            self._judge_together(groups)

    def _judge_together(self, groups: Groups) -> None:
        together = self.together
        if together is not None and together.is_for_good():
            self.together = None
            schedulers = schedulers_of(groups, TRAPS)  # others may have been stepped by now
            is_known = self._was_explained(together.rate, groups, schedulers)
            if not (is_known or self._is_warming_up):
                self._tell_of_equal_rates(together.rate, groups, UNKNOWN)

    def _tell_of_equal_rates(self, rate: float, groups: Groups, why: str) -> None:
        who = "body and head" if len({group["role"] for group in groups}) > 1 else "all groups"
        self._warn("collapse", f"{who} now share one learning rate ({rate:g}): {why}")

    def _first_by_id(self) -> dict[int, float]:
        return dict(zip(self._ids, self._first.tolist(), strict=True))

    def _is_over(self, fastest: float) -> bool:
        """Tell whether this is all that a schedule that ends at zero leaves, of either sign."""
        return bool(fastest <= self._largest * ROUNDING)

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warn_caller(message)


UNKNOWN = (
    "a scheduler or a loop wrote one number into every group. Multiply the rate of each group instead, as "
    "stackelberg_fused.scale_schedule(opt, fn) does"
)


def _is_power_of_two(count: int) -> bool:
    return not count & (count - 1)


def _are_in_proportion(rates: np.ndarray, others: np.ndarray) -> bool:
    """Tell whether rates are others times one number; False where a rate is not known."""
    if not len(others):
        return True
    widest = int(others.argmax())
    factor = float(rates[widest]) / (float(others[widest]) or np.nan)
    if not abs(factor) < LARGE:
        return False
    expected = others * factor
    return bool((np.abs(rates - expected) <= SAME * np.abs(expected)).all())


def _are_equal(rates: np.ndarray) -> bool:
    return bool(len(rates) and rates.min() >= rates.max() * (1 - SAME))


def _initial(group: dict[str, Any]) -> float:
    """What a scheduler noted as the rate of a group at its start; 0 if none did."""
    rate = group.get("initial_lr", 0.0)
    return rate if isinstance(rate, float) else 0.0


def _said(rate: float) -> str:
    """A rate as its user wrote it: infinite ones are kept as the largest number."""
    return f"{rate if rate <= LARGEST_FLOAT else np.inf:g}"
