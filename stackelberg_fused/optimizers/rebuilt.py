"""An optimizer that is built from the param groups of another: what is not in them is lost."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

from ..warning import warn_caller

if TYPE_CHECKING:
    from .engine_holder import EngineHolder

_number = count()
# in the order in which they were built
_known: weakref.WeakValueDictionary[int, EngineHolder] = weakref.WeakValueDictionary()


def register(optimizer: EngineHolder) -> None:
    """Have an optimizer recognised by its groups, as long as it lives."""
    _known[next(_number)] = optimizer


def warn_of_lost_options(new: EngineHolder, given: Mapping[str, Any]) -> None:
    """Warn where an optimizer was built from another one's groups and has not the other one's options.

    Wrappers do so that make a class of the optimizer's own and pass it `optimizer.param_groups` and nothing else.
    Groups keep their own settings; options of the optimizer as a whole are in no group.

    Args:
        new: the optimizer, as it was built.
        given: the keyword arguments that it was given; whoever passes one means it.
    """
    if not new._shared.lost.met_complete_group:
        return
    params = {id(param) for group in new.param_groups for param in group["params"]}
    for old in reversed(list(_known.values())):
        groups = () if old is new else getattr(old, "param_groups", ())
        if any(id(param) in params for group in groups for param in group["params"]):
            break
    else:
        return
    lost = {
        name: value
        for name, value in old._shared.options.items()
        # the groups have the rates that the ratio made
        if name not in (*given, "head_lr_ratio") and value != new._shared.options[name]
    }
    if lost:
        listing = ", ".join(f"{name}={value!r}" for name, value in lost.items())
        warn_caller(
            f"{type(new).__name__} was built from the param_groups of another {type(old).__name__}, which do not hold "
            f"its {listing}: pass {'it' if len(lost) == 1 else 'them'} again"
        )
