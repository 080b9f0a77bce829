"""Which parameters keep float32 state where the others of their group have fewer bits: norms and biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..memory.flattened import original_shapes
from ..memory.presence import is_uninitialized

FLOAT32_STATE = ("vectors", "none")
# elements; no model known has a longer bias (of a vocabulary), and hardly a flattened matrix is shorter
LONGEST_VECTOR = 2**18
_VECTORS = ("bias", "norm")


def name_of(group: Mapping[str, Any], position: int) -> str:
    """A parameter's own name; empty where it is not known."""
    names = group.get("param_names") or ()
    return names[position] if position < len(names) else ""


def has_float32_state(group: Mapping[str, Any], param: Tensor, name: str) -> bool:
    """Tell whether a parameter keeps float32 state whatever `state_dtype` says.

    Args:
        group: checked but for the answer of a predicate.
        param: the parameter itself, not the part of it that this process has.
        name: its own; empty where it is not known.

    Raises:
        TypeError: a predicate's answer is no bool.
    """
    setting = group["float32_state"]
    if not callable(setting):
        return setting == "vectors" and is_vector(param, name)
    answer = setting(name, param)
    if not isinstance(answer, bool):
        raise TypeError(f"float32_state must return a bool, got {answer!r} for {name!r}")
    return answer


def is_vector(param: Tensor, name: str) -> bool:
    """Tell whether a parameter has at most one dimension, apart from what sharding made of it.

    A flat parameter of FSDP1 is none if any of the parameters in it is none. One that somebody else flattened is told
    by its size, and by its name where it has one.
    """
    shapes = original_shapes(param)
    if shapes is not None:
        return all(len(shape) <= 1 for shape in shapes)
    if is_uninitialized(param) or param.dim() > 1:
        return False
    is_long = param.numel() > LONGEST_VECTOR
    return not is_long or any(word in name.lower() for word in _VECTORS)


def reason(param: Tensor) -> str:
    """Say why a parameter of one dimension is no vector; empty if it has more, or is one."""
    if param.dim() > 1:
        return ""
    shapes = original_shapes(param)
    if shapes is not None:
        return f"FSDP made it of {', '.join(map(str, shapes[:3]))}{', ...' * (len(shapes) > 3)}"
    long = param.numel() > LONGEST_VECTOR
    return f"it has {param.numel()} elements, more than a norm or a bias" if long else ""
