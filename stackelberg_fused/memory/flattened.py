"""Parameters that were several, or had more dimensions, before FullyShardedDataParallel (FSDP1) flattened them."""

from __future__ import annotations

import gc
import sys
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Shape = tuple[int, ...]

# of parameters that stayed parameters (use_orig_params=True): only the flat one, which nothing leads to, knows it
_found: Any = WeakIdKeyDictionary()


def original_shapes(param: Any) -> tuple[Shape, ...] | None:
    """The shapes that a flattened parameter is made of, whole and not of this process alone; None if it is none."""
    if not getattr(param, "_fsdp_flattened", False):
        return None
    shapes = getattr(param, "_shapes", None)
    if shapes is not None:
        return tuple(map(tuple, shapes))
    if param not in _found:
        _search()
    shape = _found.setdefault(param, None)
    return None if shape is None else (shape,)


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
            _found[param] = tuple(shape)
