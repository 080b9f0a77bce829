"""Schedulers that end several rates as one: which one does it here, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .live_schedulers import Groups, at_work, counts_steps

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


def _timms_floors(scheduler: Any) -> list[float] | None:
    lr_min, groups = getattr(scheduler, "lr_min", None), scheduler.optimizer.param_groups
    return None if lr_min is None else [lr_min * group.get("lr_scale", 1.0) for group in groups]


MIN_LR = Trap("min_lr", _held("min_lrs"), is_floor=True)
ETA_MIN = Trap("eta_min", _held("eta_min"), takes_a_list=False, is_floor=True)
LR_MIN = Trap("lr_min", _timms_floors, takes_a_list=False, is_floor=True)
WARMUP = Trap("warmup_max_lr", _held("max_lrs"))
TRAPS: dict[str, tuple[Trap, ...]] = {
    "OneCycleLR": (Trap("max_lr", _in_groups("max_lr")),),
    "CyclicLR": (Trap("base_lr", _held("base_lrs")), Trap("max_lr", _held("max_lrs"))),
    "CosineAnnealingLR": (ETA_MIN,),
    "CosineAnnealingWarmRestarts": (ETA_MIN,),
    "ReduceLROnPlateau": (MIN_LR,),
    "SWALR": (Trap("swa_lr", _in_groups("swa_lr")),),
    # transformers'
    "GreedyLR": (MIN_LR,),
    # DeepSpeed's
    "WarmupLR": (WARMUP,),
    "WarmupDecayLR": (WARMUP,),
    "OneCycle": (Trap("cycle_max_lr", _held("max_lrs"), takes_a_list=False),),
    "LRRangeTest": (Trap("lr_range_test_min_lr", _held("min_lr")),),
    # timm's
    "CosineLRScheduler": (LR_MIN,),
    "TanhLRScheduler": (LR_MIN,),
    "PolyLRScheduler": (LR_MIN,),
    "WSDLRScheduler": (LR_MIN,),
    "StepLRScheduler": (),
    "MultiStepLRScheduler": (),
    "PlateauLRScheduler": (),  # has torch's in it
    # of the package cosine-annealing-warmup, and of Lightning Bolts
    "CosineAnnealingWarmupRestarts": (
        Trap("max_lr", _held("max_lr"), takes_a_list=False),
        Trap("min_lr", _held("min_lr"), takes_a_list=False, is_floor=True),
    ),
    "LinearWarmupCosineAnnealingLR": (ETA_MIN,),
}
# these may begin at one rate for all groups, which then part
WARM_UPS = {
    *("WarmupLR", "WarmupDecayLR", "CosineLRScheduler", "TanhLRScheduler", "PolyLRScheduler"),
    *("WSDLRScheduler", "StepLRScheduler", "MultiStepLRScheduler", "PlateauLRScheduler"),
    *("CosineAnnealingWarmupRestarts", "LinearWarmupCosineAnnealingLR"),
}


class _Found(NamedTuple):
    """One number, and the groups whose rates it is written into, perhaps by several schedulers.

    Attributes:
        name: of the first scheduler.
        trap: of it.
        value: the number.
        ids: of the groups.
    """

    name: str
    trap: Trap
    value: float
    ids: set[int]


def trap_of(groups: Groups, first: Mapping[int, float], schedulers: Sequence[Any]) -> str | None:
    """Say which scheduler ends rates that were different as one, and what to write; None if none does.

    Args:
        groups: of an optimizer.
        first: by id of a group, the rate that it came with.
        schedulers: of these groups; those that nobody has stepped yet are left alone. Several may do it together, as
            those of two players with one floor.
    """
    several = []
    for one in _written(_working(schedulers, first)):
        own = [first.get(id(group), 0.0) for group in groups if id(group) in one.ids]
        if are_different(own) and one.value > NOTHING * _slowest(own):
            several.append((one, own))
    if not several:
        return None
    name, own = several[0][0].name, several[0][1]
    return _advice(name, [(one.trap, one.value) for one, _ in several if one.name == name], own)


def _written(schedulers: Sequence[Any]) -> list[_Found]:
    """The numbers that schedulers write into groups."""
    found: dict[tuple[str, str, float], _Found] = {}
    for scheduler in schedulers:
        name = known_name(scheduler)
        ids = {id(group) for group in scheduler.optimizer.param_groups}
        for trap in TRAPS.get(name, ()):
            for value in _one(trap, scheduler):
                # a floor is a floor, whoever has it
                key = ("", "", value) if trap.is_floor else (name, trap.argument, value)
                found.setdefault(key, _Found(name, trap, value, set())).ids.update(ids)
    return list(found.values())


def _working(schedulers: Sequence[Any], first: Mapping[int, float]) -> list[Any]:
    """Those that were stepped, as far as they count steps; one that does not leads rates straight to its floors."""
    return [one for one in at_work(schedulers) if counts_steps(one) or _is_on_its_way(one, first)]


def _is_on_its_way(scheduler: Any, first: Mapping[int, float]) -> bool:
    """Tell whether all rates have gone the same share of their way to the floors of a scheduler."""
    groups, shares = scheduler.optimizer.param_groups, []
    for trap in TRAPS.get(known_name(scheduler), ()):
        floors = _numbers(trap, scheduler) if trap.is_floor else []
        for group, floor in zip(
            groups, floors * len(groups) if len(floors) == 1 else floors, strict=False
        ):
            way = first.get(id(group), 0.0) - floor
            if abs(way) > NOTHING * floor:
                shares.append((float(group["lr"]) - floor) / way)
    return not shares or max(shares) - min(shares) <= NOTHING


def may_follow(schedulers: Sequence[Any], first: Mapping[int, float]) -> bool:
    """Tell whether one with traps was not stepped yet."""
    working = set(map(id, _working(schedulers, first)))
    return any(id(one) not in working and TRAPS.get(known_name(one)) for one in schedulers)


def is_warming_up(schedulers: Sequence[Any]) -> bool:
    """Tell whether one of them has warm-ups that begin at one rate for all groups."""
    return any(known_name(one) in WARM_UPS for one in schedulers)


def floor_by_eps(schedulers: Sequence[Any], rate: float) -> str | None:
    """Say of a plateau scheduler that it reduces no rate by less than `eps`, which is a floor for all groups.

    Args:
        schedulers: of some groups.
        rate: that these share.
    """
    for scheduler in at_work(schedulers):
        is_plateau = known_name(scheduler) == "ReduceLROnPlateau"
        if is_plateau and hasattr(scheduler, "factor") and hasattr(scheduler, "eps"):
            change = rate * (1 - scheduler.factor)
            if change <= scheduler.eps * (1 + NOTHING):
                return (
                    f"ReduceLROnPlateau(eps={scheduler.eps:g}) leaves rates as they are once they would change by "
                    "less; pass eps=0"
                )
    return None


def are_different(rates: Sequence[float]) -> bool:
    """Tell whether these are two rates at least; groups that rest, at a rate of 0, do not count."""
    moving = [rate for rate in rates if rate > 0]
    return bool(moving) and max(moving) > min(moving) * (1 + NOTHING)


def known_name(scheduler: Any) -> str:
    """The name of the class, or of the first of its bases, that is in the table."""
    kind = type(scheduler)
    return next((base.__name__ for base in kind.__mro__ if base.__name__ in TRAPS), kind.__name__)


def _one(trap: Trap, scheduler: Any) -> list[float]:
    """The number that an argument is for all groups, if it is one."""
    numbers = {*_numbers(trap, scheduler)}
    return [*numbers] if len(numbers) == 1 else []


def _numbers(trap: Trap, scheduler: Any) -> list[float]:
    """The numbers that an argument is; none where a class of another library has only the name in common."""
    values = trap.values(scheduler)
    values = values if isinstance(values, (list, tuple)) else [values]
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):
        return []


def _slowest(rates: Sequence[float]) -> float:
    return min(rate for rate in rates if rate > 0)


def _advice(name: str, found: Sequence[tuple[Trap, float]], own: Sequence[float]) -> str:
    given = ", ".join(f"{trap.argument}={value:g}" for trap, value in found)
    scaled = "stackelberg_fused.scale_schedule(opt, fn), which keeps the ratios"
    trap, value = found[0]
    if trap.is_floor and not trap.takes_a_list:
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
