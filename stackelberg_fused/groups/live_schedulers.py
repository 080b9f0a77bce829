"""The schedulers that are alive for some param groups, and which of them have had a hand in the rates so far."""

from __future__ import annotations

import gc
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

Groups = Sequence[dict[str, Any]]

COUNTERS = {
    "last_epoch": 0,
    "last_batch_iteration": -1,
}  # before the first step: torch's, DeepSpeed's
SETTERS = ("OneCycleLR", "CyclicLR")  # their constructors write rates
PER_GROUP = ("LambdaLR", "MultiplicativeLR")


def schedulers_of(groups: Groups, names: Collection[str]) -> list[Any]:
    """Return the schedulers that are alive and whose optimizer, or a wrapper or player of it, has one of these groups.

    It looks at every object that Python's garbage collector knows, which takes a tenth of a second in a large program:
    a scheduler knows its optimizer, but no optimizer knows its schedulers.

    Args:
        groups: of an optimizer.
        names: classes that are schedulers, though not torch's.
    """
    ids = set(map(id, groups))
    found = []
    kinds: dict[int, bool] = {}  # by id: a metaclass may define another hash
    for one in gc.get_objects():
        kind = type(one)
        is_one = kinds.get(id(kind))
        if is_one is None:
            is_one = kinds[id(kind)] = LRScheduler in kind.__mro__ or kind.__name__ in names
        if is_one:
            scheduled = getattr(getattr(one, "optimizer", None), "param_groups", None)
            if isinstance(scheduled, list) and any(id(group) in ids for group in scheduled):
                found.append(one)
    return found


def at_work(schedulers: Sequence[Any]) -> list[Any]:
    """Return those that were stepped, and the parts of those: one that nobody steps has no hand in any rate.

    One whose constructor writes rates, as that of `OneCycleLR` does, is at work while those are the rates, or where it
    is part of another one, which begins with the rates that it noted; one that counts no steps, as timm's, always.
    """
    ids = {id(one) for one in schedulers if _was_stepped(one)}
    waiting = [one for one in schedulers if id(one) in ids]
    while waiting:
        for part in _parts(waiting.pop()):
            if id(part) not in ids:
                ids.add(id(part))
                waiting.append(part)
    parts = {id(part) for one in schedulers for part in _parts(one)}
    return [
        one
        for one in schedulers
        if id(one) in ids or (_is_setter(one) and (id(one) in parts or _has_last_word(one)))
    ]


def _parts(scheduler: Any) -> Iterable[Any]:
    """Those that `SequentialLR` and `ChainedScheduler` are made of."""
    parts = getattr(scheduler, "_schedulers", ())
    return parts if isinstance(parts, (list, tuple)) else ()


def counts_steps(scheduler: Any) -> bool:
    """Tell whether a scheduler, or its parts, know how often it was stepped."""
    return bool(_counts(scheduler) or _parts(scheduler))


def _was_stepped(scheduler: Any) -> bool:
    counts = _counts(scheduler)
    return counts[0] if counts else not _parts(scheduler)  # a ChainedScheduler's parts count alone


def _counts(scheduler: Any) -> list[bool]:
    """Whether it was stepped, by each counter that it has."""
    counts = [(getattr(scheduler, name, None), start) for name, start in COUNTERS.items()]
    return [count > start for count, start in counts if isinstance(count, (int, float))]


def _is_setter(scheduler: Any) -> bool:
    return any(base.__name__ in SETTERS for base in type(scheduler).__mro__)


def _has_last_word(scheduler: Any) -> bool:
    """Tell whether the rates are those that it wrote last."""
    noted, groups = getattr(scheduler, "_last_lr", None), scheduler.optimizer.param_groups
    if not isinstance(noted, (list, tuple)) or len(noted) != len(groups):
        return False
    pairs = zip(noted, groups, strict=True)
    return all(math.isclose(lr, group["lr"], rel_tol=1e-6) for lr, group in pairs)


def are_set_apart(schedulers: Iterable[Any]) -> bool:
    """Tell whether groups have functions of their own: rates that meet are what somebody wrote down for each."""
    functions = {
        id(function)
        for one in schedulers
        if any(base.__name__ in PER_GROUP for base in type(one).__mro__)
        for function in _functions(one)
    }
    return len(functions) > 1


def _functions(scheduler: Any) -> Iterator[Any]:
    functions = getattr(scheduler, "lr_lambdas", ())
    yield from functions if isinstance(functions, (list, tuple)) else ()
