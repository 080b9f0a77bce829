"""Constraint sets of param groups: what `constraint=` takes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import astuple, dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch

from ..numerics.projection import SLACK, rounded


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
        """Return its form in a state dict: strings and numbers only, so that `torch.load` accepts it."""
        values: Any = self  # each of them is a dataclass
        return (self.kind, *astuple(values))


@dataclass(frozen=True)
class Box(Constraint):
    """low <= x <= high, element by element; projected inside the launch of the update.

    Attributes:
        low, high: numbers, infinities for no bound.

    Raises:
        ValueError, TypeError: no numbers, NaN, or low > high.

    Example:
        >>> weight = nn.Parameter(torch.zeros(3))
        >>> opt = sf.StackelbergSGD([weight], lr=1.0, constraint=sf.Box(-0.5, 0.5))
        >>> weight.grad = torch.tensor([-2.0, 0.2, 2.0])
        >>> opt.step()
        >>> weight.data
        tensor([ 0.5000, -0.2000, -0.5000])
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
    """x >= 0; projected inside the launch of the update.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> opt = sf.StackelbergSGD([weight], lr=1.0, constraint=sf.NonNegative())
        >>> weight.grad = torch.tensor([-2.0, 2.0])
        >>> opt.step()
        >>> weight.data
        tensor([2., 0.])
    """

    def __init__(self) -> None:
        super().__init__(0.0, math.inf)

    def __repr__(self) -> str:
        return "NonNegative()"


@dataclass(frozen=True)
class JointSet(Constraint):
    """A set that many elements share: projected by one launch more, after that of the update.

    A group's parameters need one device and one dtype. Of DTensors a ball is around the whole, and no row of a simplex
    may be cut. An element that is not finite leaves all that share the set with them as they are.
    """

    @property
    @abstractmethod
    def size(self) -> float:
        """Its radius or total."""

    @property
    def largest(self) -> float:
        """Up to which norm or sum elements count as inside."""
        return self.size * (1 + SLACK)

    @abstractmethod
    def smallest(self, dtype: torch.dtype) -> float:
        """From which sum on they do."""

    def check_dtype(self, dtype: torch.dtype) -> None:
        is_lost = rounded(self.size, dtype, up=False) == 0 and self.size > 0
        if is_lost or self.size > torch.finfo(dtype).max:
            raise ValueError(f"{self}: {self.size:g} is not in the range of {dtype}")


@dataclass(frozen=True)
class L2Ball(JointSet):
    """|x| <= radius, the Euclidean norm over all parameters of the group, also those without a gradient.

    When one of them has moved and the norm is larger, all are scaled by one factor.

    Attributes:
        radius: >= 0 and finite.

    Raises:
        ValueError, TypeError: anything else.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> opt = sf.StackelbergSGD([weight], lr=1.0, constraint=sf.L2Ball(1.0))
        >>> weight.grad = torch.tensor([-3.0, -4.0])
        >>> opt.step()
        >>> weight.data
        tensor([0.6000, 0.8000])
    """

    radius: float
    kind: ClassVar[str] = "l2_ball"

    def __post_init__(self) -> None:
        object.__setattr__(self, "radius", _number("L2Ball", "radius", self.radius))
        if not 0 <= self.radius < math.inf:
            raise ValueError(f"L2Ball: radius must be >= 0 and finite, got {self.radius:g}")

    @property
    def size(self) -> float:
        return self.radius

    def smallest(self, dtype: torch.dtype) -> float:
        return 0.0


@dataclass(frozen=True)
class Simplex(JointSet):
    """x >= 0 and sum(x) = total, for each row of a parameter along its last dimension; a scalar is a row of one.

    The sum is as close to the total, from below, as the elements' own rounding towards zero leaves it.

    Attributes:
        total: > 0 and finite.

    Raises:
        ValueError, TypeError: anything else.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2, 2))
        >>> opt = sf.StackelbergSGD([weight], lr=1.0, constraint=sf.Simplex())
        >>> weight.grad = -torch.tensor([[1.0, 1.0], [3.0, 0.0]])
        >>> opt.step()
        >>> weight.data
        tensor([[0.5000, 0.5000],
                [1.0000, 0.0000]])
    """

    total: float = 1.0
    kind: ClassVar[str] = "simplex"

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", _number("Simplex", "total", self.total))
        if not 0 < self.total < math.inf:
            raise ValueError(f"Simplex: total must be > 0 and finite, got {self.total:g}")

    @property
    def size(self) -> float:
        return self.total

    def smallest(self, dtype: torch.dtype) -> float:
        # every element rounded towards zero, and as much again
        return self.total * (1 - max(2 * torch.finfo(dtype).eps, SLACK))


CONSTRAINTS = (Box, NonNegative, L2Ball, Simplex)
KINDS: dict[str, type[Constraint]] = {kind.kind: kind for kind in (Box, L2Ball, Simplex)}


def as_constraint(value: Any) -> Constraint | None:
    """A constraint as users give it or a state dict holds it.

    Raises:
        TypeError, ValueError: it is none.
    """
    if value is None or type(value) in CONSTRAINTS:
        return value
    if isinstance(value, (tuple, list)) and value and str(value[0]) in KINDS:
        found = KINDS[value[0]](*value[1:])
        return NonNegative() if found == Box(0.0) else found
    known = ", ".join(kind.__name__ for kind in CONSTRAINTS)
    raise TypeError(f"constraint must be None or one of {known}, got {value!r}")


def joint_set(group: dict[str, Any]) -> JointSet | None:
    """The set of a group that is projected onto by a launch of its own, or None."""
    constraint = as_constraint(group["constraint"])
    return constraint if isinstance(constraint, JointSet) else None


def box_bounds(group: dict[str, Any], dtype: torch.dtype) -> tuple[float, float] | None:
    """Lower and upper bound of a group's box, as numbers of a dtype, or None where it has no box."""
    constraint = as_constraint(group["constraint"])
    return constraint.bounds(dtype) if isinstance(constraint, Box) else None


def _number(owner: str, name: str, value: Any) -> float:
    is_number = isinstance(value, (Real, np.ndarray, torch.Tensor)) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else None
    except (TypeError, ValueError, RuntimeError):  # several
        number = None
    except OverflowError:
        raise ValueError(f"{owner}: {name} is too large") from None
    if number is None:
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}")
    if math.isnan(number):
        raise ValueError(f"{owner}: {name} is NaN")
    return number
