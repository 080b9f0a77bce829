"""Parameters that were several, or had more dimensions, before FullyShardedDataParallel (FSDP1) flattened them."""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Shape = tuple[int, ...]

# Shapes and `_is_dealt` of parameters that stayed parameters (use_orig_params=True): only the flat one, which nothing
# leads to, knows them.
_found: Any = WeakIdKeyDictionary()


def original_shapes(param: Any) -> tuple[Shape, ...] | None:
    """The shapes that a flattened parameter is made of, whole and not of this process alone; None if it is none."""
    if not getattr(param, "_fsdp_flattened", False):
        return None
    if is_joined(param):
        return tuple(map(tuple, param._shapes))
    known = _known(param)
    return None if known is None else (known[0],)


def is_joined(param: Any) -> bool:
    """Tell whether a parameter is what FSDP1 made of several (use_orig_params=False), whose names are gone."""
    return getattr(param, "_fsdp_flattened", False) and getattr(param, "_shapes", None) is not None


def is_cut(param: Any) -> bool:
    """Tell whether several ranks hold parts of a flattened parameter.

    The answer is the same on all of them: one rank may hold all of a parameter, and the others nothing.
    """
    if not getattr(param, "_fsdp_flattened", False):
        return False
    if is_joined(param):
        return _is_dealt(param)
    known = _known(param)
    return known is not None and known[1]


def _known(param: Any) -> tuple[Shape, bool] | None:
    if param not in _found:
        _search()
    return _found.setdefault(param, None)


def _is_dealt(flat: Any) -> bool:
    """Tell whether ranks hold parts of a FlatParameter, which are of one size: the last ones are padded."""
    whole, part = flat._unpadded_unsharded_size.numel(), flat._sharded_size.numel()
    # of a single element one rank has the only one, and the others padding
    return part < whole or (whole == 1 and torch.distributed.get_world_size() > 1)


def _search() -> None:
    """Note the shapes of all parameters that flat ones know; looks at every object, which takes tenths of a second."""
    module = sys.modules.get("torch.distributed.fsdp._flat_param")
    flat = getattr(module, "FlatParameter", None)
    if flat is None:
        return
    for candidate in gc.get_objects():
        # FlatParameter is no real class: isinstance() asks for a mark, and weak proxies of what is gone for anything
        if not (issubclass(type(candidate), Tensor) and isinstance(candidate, flat)):
            continue
        for param, shape in zip(candidate._params or (), candidate._shapes, strict=False):
            _found[param] = tuple(shape), _is_dealt(candidate)
