"""Schedulers that end several rates as one: which one does it here, and what to write instead."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.optim.lr_scheduler import LRScheduler

Groups = Sequence[dict[str, Any]]

NOTHING = 1e-6  # of the slowest rate: what a floor may be without anybody noticing


class Trap(NamedTuple):
    """An argument of a scheduler that is one number for all groups where one number was passed.

    Attributes:
        argument: its name.
        values: what a scheduler made of it; a number, or one per group.
        takes_a_list: whether the argument may be one number per group.
        is_floor: whether rates only end there.
    """

    argument: str
    values: Callable[[Any], Any]
    takes_a_list: bool = True
    is_floor: bool = False


def _held(name: str) -> Callable[[Any], Any]:
    return lambda scheduler: getattr(scheduler, name, None)


def _in_groups(name: str) -> Callable[[Any], Any]:
    return lambda scheduler: [group.get(name) for group in scheduler.optimizer.param_groups]


def _timms_floors(scheduler: Any) -> list[float]:
    groups = scheduler.optimizer.param_groups
    return [scheduler.lr_min * group.get("lr_scale", 1.0) for group in groups]


ETA_MIN = Trap("eta_min", _held("eta_min"), takes_a_list=False, is_floor=True)
LR_MIN = Trap("lr_min", _timms_floors, takes_a_list=False, is_floor=True)
WARMUP = Trap("warmup_max_lr", _held("max_lrs"))
TRAPS: dict[str, tuple[Trap, ...]] = {
    "OneCycleLR": (Trap("max_lr", _in_groups("max_lr")),),
    "CyclicLR": (Trap("base_lr", _held("base_lrs")), Trap("max_lr", _held("max_lrs"))),
    "CosineAnnealingLR": (ETA_MIN,),
    "CosineAnnealingWarmRestarts": (ETA_MIN,),
    "ReduceLROnPlateau": (Trap("min_lr", _held("min_lrs")),),
    # DeepSpeed's
    "WarmupLR": (WARMUP,),
    "WarmupDecayLR": (WARMUP,),
    "OneCycle": (Trap("cycle_max_lr", _held("max_lrs"), takes_a_list=False),),
    "LRRangeTest": (Trap("lr_range_test_min_lr", _held("min_lr")),),
    # timm's
    "CosineLRScheduler": (LR_MIN,),
    "TanhLRScheduler": (LR_MIN,),
    "PolyLRScheduler": (LR_MIN,),
}
# these may begin at one rate for all groups, which then part
WARM_UPS = {name for name, traps in TRAPS.items() if traps in ((WARMUP,), (LR_MIN,))}


def trap_of(groups: Groups, first: Mapping[int, float]) -> str | None:
    """Say which scheduler of these groups ends rates that were different as one, and what to write; None if none does.

    It looks at every object that Python's garbage collector knows, which takes tenths of a second in a large program: a
    scheduler knows its optimizer, but no optimizer knows its schedulers.

    Args:
        groups: of an optimizer.
        first: by id of a group, the rate that it came with.
    """
    for scheduler in schedulers_of(groups):
        own = [first.get(id(group), 0.0) for group in scheduler.optimizer.param_groups]
        if not are_different(own):
            continue
        found = [(trap, value) for trap in _traps(scheduler) for value in _one(trap, scheduler)]
        found = [(trap, value) for trap, value in found if value > NOTHING * _slowest(own)]
        if found:
            return _advice(_known_name(type(scheduler)), found, own)
    return None


def is_warming_up(groups: Groups) -> bool:
    """Tell whether a scheduler of these groups has warm-ups that begin at one rate for all of them."""
    return any(_known_name(type(scheduler)) in WARM_UPS for scheduler in schedulers_of(groups))


def floor_by_eps(groups: Groups) -> str | None:
    """Say of a plateau scheduler that it reduces no rate by less than `eps`, which is a floor for all groups."""
    for scheduler in schedulers_of(groups):
        if _known_name(type(scheduler)) == "ReduceLROnPlateau":
            return (
                f"ReduceLROnPlateau(eps={scheduler.eps:g}) leaves rates as they are once they would change by less; "
                "pass eps=0"
            )
    return None


def schedulers_of(groups: Groups) -> Iterator[Any]:
    """The schedulers that are alive and whose optimizer, or a wrapper or player of it, has one of these groups."""
    ids = set(map(id, groups))
    for found in gc.get_objects():
        kind = type(found)
        if LRScheduler in kind.__mro__ or kind.__name__ in TRAPS:
            scheduled = getattr(getattr(found, "optimizer", None), "param_groups", None)
            if isinstance(scheduled, list) and any(id(group) in ids for group in scheduled):
                yield found


def are_different(rates: Sequence[float]) -> bool:
    """Tell whether these are two rates at least; groups that rest, at a rate of 0, do not count."""
    moving = [rate for rate in rates if rate > 0]
    return bool(moving) and max(moving) > min(moving) * (1 + NOTHING)


def _traps(scheduler: Any) -> tuple[Trap, ...]:
    return TRAPS.get(_known_name(type(scheduler)), ())


def _known_name(kind: type) -> str:
    """The name of the class, or of the first of its bases, that is in the table."""
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in TRAPS), kind.__name__)


def _one(trap: Trap, scheduler: Any) -> list[float]:
    """The number that an argument is for all groups, if it is one."""
    values = trap.values(scheduler)
    values = values if isinstance(values, (list, tuple)) else [values]
    if not values or None in values:
        return []
    numbers = {float(value) for value in values}
    return [*numbers] if len(numbers) == 1 else []


def _slowest(rates: Sequence[float]) -> float:
    return min(rate for rate in rates if rate > 0)


def _advice(name: str, found: Sequence[tuple[Trap, float]], own: Sequence[float]) -> str:
    given = ", ".join(f"{trap.argument}={value:g}" for trap, value in found)
    scaled = "stackelberg_fused.scale_schedule(opt, fn), which keeps the ratios"
    trap, value = found[0]
    if trap.is_floor:
        share = min(value / _slowest(own), 1.0)
        return (
            f"{name}({given}) ends the rates of all groups at this number, and takes no list. Pass "
            f"{trap.argument}=0, or take {scaled}: fn=stackelberg_fused.warmup_cosine(steps, floor={share:.2g})"
        )
    if not trap.takes_a_list:
        return f"{name}({given}) sets every group alike, and takes no list. Take {scaled}"
    lists = ", ".join(f"{trap.argument}={_per_group(value, own)}" for trap, value in found)
    return (
        f"{name}({given}) is one number for every group. Pass one per group, {name}(opt, {lists}, ...), or take "
        f"{scaled}"
    )


def _per_group(value: float, own: Sequence[float]) -> str:
    """A list that has this value where the slowest group stands, and keeps the ratios."""
    rates = [f"{value * rate / _slowest(own):g}" for rate in own]
    shown = rates if len(rates) <= 6 else [*rates[:3], "...", rates[-1]]
    return f"[{', '.join(shown)}]"
