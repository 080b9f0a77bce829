"""What an optimizer knows, in one object that the wrappers which imitate its class share with it."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from ..engine.across_rebuilds import AcrossRebuilds
from ..groups.lost_settings import LostSettings
from ..groups.new_group import Members
from ..layout.statistics import NOBODY, ClipLimits, Launched
from .accumulated import AccumulatedGradients

if TYPE_CHECKING:
    from ..engine.engine import Engine
    from .engine_holder import EngineHolder
    from .player import Player
    from .release import Release

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Shared:
    """Everything that would be an attribute of the optimizer.

    Lightning and Fabric hand out wrappers whose class derives from the optimizer's: our methods run with the wrapper
    as `self`. It reads our attributes, or a copy of them, but what is assigned to it stays with it. So the optimizer
    has one attribute, this object, and everything is assigned here.

    Attributes:
        optimizer: the one that was constructed, unpickled or copied.
        options: of the optimizer as a whole, see `OptimizerOptions`.
        across_rebuilds, met_scaler, launches, unscales: outlive pickling, as `options` do. `met_scaler`: a scaler's
            attributes were there at some step. `unscales`: scalers leave unscaling and skipping to the step.
        defaults, state, param_groups: torch's.
        limits: the norms to which gradients are clipped.
        from_scaler: `grad_scale` and `found_inf`, where a gradient scaler, or somebody else, set them.
        lost: settings that were given, until it is known whether they have an effect; outlives pickling too.
        members: of the groups so far, while the constructor adds them.
        is_stale: the engine is that of parameters or state that are no longer there.
        is_swapped: the parameters hold their averages.
        players: those that were asked for; the optimizer holds them, lest they, who hold this object, be held by it.
        stepped: players that took a step; their schedulers ask.
        last, found_inf: of the last step, for its report.
        accumulated: for mode="alternating".
        running: "call": a token of the call that steps, or else builds or reads the tables, while one does. The call
            whose token `setdefault` puts there, which is one operation to other threads, is the one that may. A lock
            that an interrupt left locked could not be told from one that another thread holds.
        release: for release="backward".
    """

    optimizer: weakref.ref[EngineHolder]
    options: dict[str, Any]
    across_rebuilds: AcrossRebuilds = field(default_factory=AcrossRebuilds)
    met_scaler: bool = False
    launches: int = 0
    unscales: bool = False
    defaults: dict[str, Any] = field(default_factory=dict)
    state: defaultdict[Tensor, Any] = field(default_factory=lambda: defaultdict(dict))
    param_groups: list[dict[str, Any]] = field(default_factory=list)
    limits: ClipLimits | None = None
    from_scaler: dict[str, Any] = field(default_factory=dict)
    lost: LostSettings = field(default_factory=lambda: LostSettings({}))
    members: Members | None = None
    engine: Engine | None = None
    is_stale: bool = False
    is_swapped: bool = False
    players: weakref.WeakValueDictionary[str, Player] = field(
        default_factory=weakref.WeakValueDictionary
    )
    stepped: set[str] = field(default_factory=set)
    last: Launched = (0, None, NOBODY)
    found_inf: Tensor | None = None
    accumulated: AccumulatedGradients = field(default_factory=AccumulatedGradients)
    running: dict[str, object] = field(default_factory=dict)
    release: Release | None = None

    def alone(self, what: str, call: Callable[[], T]) -> T:
        """Make a call, and keep other threads from stepping the optimizer meanwhile; returns what the call does.

        No context manager: an interrupt as one is left would come before it could let the next call in.

        Raises:
            RuntimeError: somebody is at it; nothing is waited for.
        """
        mine = object()
        try:
            if self.running.setdefault("call", mine) is not mine:
                raise busy(what)
            result = call()
            del self.running["call"]
        except BaseException:
            self.end(mine)
            raise
        return result

    def end(self, mine: object) -> None:
        """Let the next call in, if it is the one with this token that is running."""
        if self.running.get("call") is mine:
            del self.running["call"]

    def refuse_averages(self, what: str) -> None:
        """Raise RuntimeError where the parameters hold their averages."""
        if self.is_swapped:
            raise RuntimeError(
                f"{what}: the parameters hold their averages; leave ema_weights() first"
            )


def busy(what: str) -> RuntimeError:
    """The error of a call that came while a step was running."""
    return RuntimeError(
        f"{what}: another thread is in a step of this optimizer, or in another call that changes it (or a signal "
        "handler interrupted one). One optimizer takes one call at a time: give each thread its own, or have them "
        "share a lock"
    )
