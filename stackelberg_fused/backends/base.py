"""The interface of a backend: a status, the parameters that it can update, and one method for a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ..groups.schemes import DTYPE_WORD
from ..layout.joint_sets import JointSets
from ..layout.part import Part
from ..layout.scaling import Scaling
from ..layout.slot import Kind, Span
from ..layout.statistics import ClipLimits, Statistics
from ..layout.table import Table
from .interrupts import make_calls


@dataclass(frozen=True)
class BackendStatus:
    """Tells whether a backend can run on this machine and, if not, why and what to do.

    Attributes:
        name: "cuda", "triton", "cpu" or "reference".
        available: it can run.
        reason: why it cannot, and what to do; empty where it can.
    """

    name: str
    available: bool
    reason: str = ""


@dataclass(slots=True)
class Launch:
    """One launch: the part of a table to update, and its gradients.

    Attributes:
        table: records, tiles and rows are filled for this step.
        span: the slots and tiles to update; a part brings a list of tiles of its own.
        gradient: returns the gradient of a slot, None to skip the slot; for backends that do not read memory.
        rule: the rule that all rows share, or MIXED_RULES.
        state: the optimizer's state, by parameter.
        statistics: of the gradients, whose factors clip them; None: gradients are not clipped.
        scaling: the scale and the verdict of a gradient scaler, on the table's device.
        zero_grads: the launch leaves zeros in all gradients, also in those that moved nothing.
        moves: bool [slots]: slots that move; where only the device knows, those that may.
        joint_sets: those of the table, where any of their slots may move: projected onto after the update.
        conclusion: calls of built-in functions that complete the step after the kernels: they count it, and copy back
            what was updated in the place of a parameter.
    """

    table: Table
    span: Span | Part
    gradient: Callable[[int], Tensor | None]
    rule: int
    state: Mapping[Tensor, dict[str, Any]]
    statistics: Statistics | None = None
    scaling: Scaling | None = None
    zero_grads: bool = False
    moves: np.ndarray | None = None
    joint_sets: JointSets | None = None
    conclusion: Sequence[partial[Any]] = ()

    def make(self, *calls: partial[Any]) -> None:
        """Make native calls and conclude the step, all of it or nothing: no interrupt (Ctrl-C) comes between them."""
        make_calls((*calls, *self.conclusion))
        self.conclusion = ()

    @property
    def first_head_tile(self) -> int:
        """Where the head's tiles begin, in the list of tiles that the launch goes by."""
        span = self.span
        return span.first_head_tile if type(span) is Part else self.table.first_head_tile

    @property
    def needed_statistics(self) -> Statistics:
        """`statistics` of a launch whose gradients are clipped."""
        assert self.statistics is not None
        return self.statistics

    @property
    def needed_joint_sets(self) -> JointSets:
        """`joint_sets` of a launch that is followed by a projection onto them."""
        assert self.joint_sets is not None
        return self.joint_sets


def refusal_of_kernel(name: str, device_type: str, kind: Kind) -> str:
    """Why a kernel that takes any mix of at most 32 bits cannot update parameters of a kind; empty when it can."""
    if kind.device.type != device_type:
        return f"the {name} backend cannot update parameters on {kind.device}"
    if not kind.has_memory:
        return f"the {name} backend cannot update tensors without memory of their own"
    if kind.dtype not in DTYPE_WORD:
        return f"the {name} backend updates parameters of at most 32 bits, not {kind.dtype}"
    if kind.has_joint_set:
        return f"the {name} backend projects onto joint sets float32 parameters with float32 state alone"
    return ""


class Backend(ABC):
    """Updates the parameters of one table."""

    name: ClassVar[str]
    reads_memory: ClassVar[bool] = True  # goes by the addresses in the records, not by tensors
    mixes_dtypes: ClassVar[bool] = False  # updates all parameters of a device in one launch
    is_native: ClassVar[bool] = False  # its steps are native calls, made by `Launch.make`
    counts_on_device: bool = (
        False  # can count steps where the host does not know whether they are taken
    )

    @classmethod
    @abstractmethod
    def status(cls) -> BackendStatus:
        """Tell whether this machine can run it."""

    @abstractmethod
    def refusal(self, kind: Kind) -> str:
        """Why parameters of this kind cannot be updated; empty when they can."""

    @abstractmethod
    def statistics(self, launch: Launch, limits: ClipLimits) -> int:
        """Fill `launch.statistics` for the gradients of the span; returns the number of kernel launches made."""

    def conclude(self, launch: Launch, limits: ClipLimits) -> int:
        """Write what follows from `launch.statistics.digits`, which were added up over tables or ranks.

        Returns:
            The number of kernel launches made.
        """
        conclude_with_torch(launch, limits)
        return 0

    def step(self, launch: Launch) -> int:
        """Update in place, then project what moved onto `launch.joint_sets` and average it.

        Signals that arrive meanwhile are handled afterwards, unless the backend is native.

        Returns:
            The number of kernel launches made: one, and one more where there are joint sets.
        """
        launches = self.update(launch)
        return launches if launch.joint_sets is None else launches + self.project(launch)

    @abstractmethod
    def update(self, launch: Launch) -> int:
        """The first half of a step: the update alone, which leaves the sums of `launch.joint_sets` for `project`.

        The step is not concluded.

        Returns:
            The number of kernel launches made.
        """

    @abstractmethod
    def project(self, launch: Launch) -> int:
        """The second half, by the factors that `launch.joint_sets` has then.

        Returns:
            The number of kernel launches made.
        """


def conclude_with_torch(launch: Launch, limits: ClipLimits) -> None:
    """As `Backend.conclude`, of sums that no kernel has room for too."""
    statistics = launch.needed_statistics
    statistics.conclude_digits(statistics.digits, limits)
    sought = None if launch.scaling is None else launch.scaling.sought
    if sought is not None:
        sought.copy_(statistics.not_finite)
