"""Constraint sets of param groups, and the projections onto them.

A projection's result is rounded towards the set, so that the stored value is in it, and projecting it again leaves it
as it is, to the bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class Constraint(ABC):
    """A convex set for the parameters of a group (`constraint=`), onto which every update is projected.

    The projection is Euclidean under every rule; for Adam that is not the one in the metric of its second moments, and
    a fixed point need not be a constrained minimiser then (docs/algorithm.md).
    """

    kind: ClassVar[str]

    @abstractmethod
    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise ValueError where no number of a dtype is in the set."""

    def packed(self) -> tuple[Any, ...]:
        """What stands for it in a state dict: only strings and numbers, so that `torch.load` takes it."""
        return (self.kind, *astuple(self))


@dataclass(frozen=True)
class Box(Constraint):
    """low <= x <= high, element by element; projected inside the launch of the update.

    Attributes:
        low, high: numbers, infinities for no bound.

    Raises:
        ValueError, TypeError: no numbers, NaN, or low > high.
    """

    low: float = -math.inf
    high: float = math.inf
    kind: ClassVar[str] = "box"

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, _number(type(self).__name__, name, getattr(self, name)))
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"Box: nothing is between low={self.low:g} and high={self.high:g}")

    def bounds(self, dtype: torch.dtype) -> tuple[float, float]:
        """The smallest and the largest number of a dtype in the box."""
        return rounded(self.low, dtype, up=True), rounded(self.high, dtype, up=False)

    def check_dtype(self, dtype: torch.dtype) -> None:
        low, high = self.bounds(dtype)
        if not low <= high or low == math.inf or high == -math.inf:
            raise ValueError(f"{self}: no {dtype} number is in it")


@dataclass(frozen=True, init=False, repr=False)
class NonNegative(Box):
    """x >= 0; projected inside the launch of the update."""

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)

    def __repr__(self) -> str:
        return "NonNegative()"


CONSTRAINTS = (Box, NonNegative)
KINDS: dict[str, type[Constraint]] = {Box.kind: Box}


def as_constraint(value: Any) -> Constraint | None:
    """A constraint as users give it or a state dict holds it.

    Raises:
        TypeError, ValueError: it is none.
    """
    if value is None or type(value) in CONSTRAINTS:
        return value
    if isinstance(value, (tuple, list)) and value and value[0] in KINDS:
        found = KINDS[value[0]](*value[1:])
        return NonNegative() if found == Box(0.0) else found
    raise TypeError(f"constraint must be None or one of Box, NonNegative, got {value!r}")


def project_box(param: Tensor, low: float, high: float) -> Tensor:
    """The nearest point of a box whose bounds are numbers of the dtype: new; NaN stays NaN, and so does -0.0."""
    return torch.where(param < low, low, torch.where(param > high, high, param))


@lru_cache(maxsize=256)
def rounded(value: float, dtype: torch.dtype, up: bool) -> float:
    """The nearest number of a dtype on one side of a number, or that number."""
    exact = torch.tensor(value, dtype=torch.float64)
    near = exact.to(dtype)
    if not (near.double() < exact if up else near.double() > exact):
        return float(near)
    bits = near.view(_INTEGERS[near.element_size()])
    if near == 0:
        bits = torch.zeros_like(bits) + 1
        return float(bits.view(dtype)) * (1.0 if up else -1.0)
    away_from_zero = (near > 0) == up
    return float((bits + (1 if away_from_zero else -1)).view(dtype))


def _number(owner: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}")
    if math.isnan(value):
        raise ValueError(f"{owner}: {name} is NaN")
    return float(value)
