"""An optimizer that was built before its model was sharded: its parameters are no module's, and get no gradients."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..groups.param_groups import param_label
from ..memory.sharding import is_sharded

# fully_shard() numbers the parameters that it replaces by shards, in this attribute (torch 2.13 and later)
_MARK = "_fsdp_orig_uid"
# who replaces the parameters of modules
_SHARDING = ("torch.distributed.fsdp", "torch.distributed.tensor")
_MOST_SEARCHES = 3  # each looks at all objects of the process, tenths of a second


class ReplacedParameters:
    """Recognises such parameters.

    Args:
        groups: the optimizer's param groups.

    Attributes:
        is_new: no step has been looked at.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._groups = groups
        self._searches = _MOST_SEARCHES
        self.is_new = True

    def refuse_marked(self) -> None:
        """Raise RuntimeError, naming it, for a parameter that says of itself that fully_shard() replaced it."""
        self.is_new = False
        if "torch.distributed.fsdp" not in sys.modules:
            return
        for index, group in enumerate(self._groups):
            for position, param in enumerate(group["params"]):
                if hasattr(param, _MARK) and param.grad is None:
                    raise _error(param_label(index, group, position))

    def refuse_orphans(self) -> None:
        """Raise RuntimeError, in a step without any gradient, where other parameters have taken the place of all."""
        self.refuse_marked()
        if not self._searches or not any(name in sys.modules for name in _SHARDING):
            return
        labelled = [
            (param_label(index, group, position), param)
            for index, group in enumerate(self._groups)
            for position, param in enumerate(group["params"])
            if param.requires_grad
        ]
        params = [param for _, param in labelled]
        if not params or any(param.grad is not None for param in params):
            return
        self._searches -= 1
        if _are_replaced(params):
            raise _error(labelled[0][0])


def _are_replaced(params: list[Any]) -> bool:
    """Tell whether no module has any of these, while shards of as many others of the same shapes have gradients."""
    own = {id(p) for p in params}
    shapes: Counter[tuple[int, ...]] = Counter()
    counted: set[int] = set()
    for candidate in gc.get_objects():
        # isinstance() would ask a weak proxy of what is gone
        if not issubclass(type(candidate), nn.Module):
            continue
        for param in (candidate.__dict__.get("_parameters") or {}).values():
            if id(param) in own:
                return False
            if param is not None and param.grad is not None and id(param) not in counted:
                counted.add(id(param))
                shapes.update(_whole_shapes(param))
    return Counter(tuple(p.shape) for p in params) <= shapes


def _whole_shapes(param: Any) -> list[tuple[int, ...]]:
    """The shapes of the parameters that this one has a shard of: a DTensor, or a flat parameter of FSDP1."""
    if is_sharded(param):
        return [tuple(param.shape)]
    return [tuple(shape) for shape in getattr(param, "_shapes", ())]


def _error(label: str) -> RuntimeError:
    return RuntimeError(
        f"{label}: it is no parameter of its model any more: the model was sharded after the optimizer had got its "
        "parameters, and has others since. Build the optimizer after fully_shard(model)"
    )
