"""An optimizer's hold on its engine: built once, built again after edits, and left out of pickles."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from torch import Tensor
from typing_extensions import Self

from ..backends.interrupts import HeldSignals
from ..engine.across_rebuilds import AcrossRebuilds
from ..engine.engine import Engine
from ..engine.state_checks import check_loaded
from ..groups.hyperparameters import turn_of
from ..groups.option_types import Role
from ..groups.param_groups import (
    check_hyperparameters,
    check_params,
    check_params_list,
    param_label,
)
from ..layout.statistics import ClipLimits
from ..memory.arena import lasting
from ..memory.overlap import check_overlap
from ..torch_compat import UNKNOWN
from .attributes import SharedAttributes
from .checkpoint import complete_state
from .rebuilt import register
from .release import Release
from .shared import Shared

_OF_TORCH = ("defaults", "state", "param_groups")
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


class Loaded(NamedTuple):
    """What an engine is built for, and an optimizer takes over from a state dict when it is built."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]
    across_rebuilds: AcrossRebuilds


def _bare(cls: type[EngineHolder]) -> EngineHolder:
    """An optimizer that is to get its state."""
    return cls.__new__(cls)


class EngineHolder(SharedAttributes):
    """Builds the engine, and builds it again where groups, parameters or state were edited."""

    def _labelled(self, groups: Iterable[dict[str, Any]]) -> list[tuple[str, Tensor]]:
        labelled: dict[int, tuple[str, Tensor]] = {}
        for index, group in enumerate(groups):
            for position, param in enumerate(group["params"]):
                labelled.setdefault(id(param), (param_label(index, group, position), param))
        return list(labelled.values())

    @lasting
    def _build(self, loaded: Loaded | None = None) -> Engine:
        """Build the engine and have the optimizer take it; nothing of this is seen unless all of it succeeds."""
        shared = self._shared
        of = loaded or Loaded(shared.param_groups, shared.state, shared.across_rebuilds)
        is_flat = shared.options["grads"] == "flat"
        left = shared.accumulated.left_over(of.param_groups) if is_flat else []
        # until there is one: an edit that is refused is refused at every step
        shared.is_stale = True
        engine = Engine(
            of.param_groups,
            of.state,
            shared.options["backend"],
            shared.options["flatten"],
            is_flat,
            of.across_rebuilds,
            None if loaded is None else shared.state,
            in_parts=shared.release is not None,
        )
        now = {**of._asdict(), "engine": engine, "is_stale": False}
        engine.attach(partial(setattr, shared, name, value) for name, value in now.items())
        shared.accumulated.note(left)  # they may lie in other buffers now
        if shared.release is not None:
            shared.release.follow(shared.param_groups, engine)
        return engine

    def _build_again(self) -> Engine:
        """Build the engine for groups or state that somebody edited, after checking them as if they were new."""
        shared = self._shared
        shared.is_stale = (
            True  # until there is one: an edit that is refused is refused at every step
        )
        for index, group in enumerate(shared.param_groups):
            check_params_list(group, index)
            check_hyperparameters(group, index)
            check_params(group, index)
        check_overlap(self._labelled(shared.param_groups))
        check_loaded(shared.state, shared.param_groups)
        return self._build()

    def _current(self) -> Engine:
        """The engine as a question between steps needs it; a step itself finds out what was edited."""
        engine = self._ready()
        return self._build_again() if engine.was_edited() else engine

    def _ready(self) -> Engine:
        """The engine, built again where there is none or it belongs to other groups or another state."""
        shared = self._shared
        engine = shared.engine
        if (
            engine is None
            or shared.is_stale
            or engine.is_broken
            or engine.state is not shared.state
            or engine.groups is not shared.param_groups
        ):
            return self._build_again()
        return engine

    def _rounds(self) -> list[tuple[int, str] | None]:
        """The `update_every` and `update_every_grads` to which each group's counts belong; None before the first."""
        shared = self._shared
        return [shared.across_rebuilds.turns.get(id(group)) for group in shared.param_groups]

    def unwrapped(self) -> Self:
        """The optimizer, where this is a wrapper that imitates its class; else itself."""
        return cast("Self", self._shared.optimizer() or self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # a wrapper's copy could not step: it would lack what the wrapper's own class needs
        optimizer = self.unwrapped()
        if optimizer is self:
            return super().__reduce_ex__(protocol)
        return _bare, (type(optimizer),), optimizer.__getstate__()

    def __getstate__(self) -> dict[str, Any]:
        shared = self._shared
        shared.refuse_averages("pickling or copying an optimizer")
        own = {
            "_options": shared.options,
            "_lost": shared.lost,
            "_met_scaler": shared.met_scaler,
            "launches": shared.launches,
            "_unscales": shared.unscales,
            "_reported": shared.across_rebuilds.reported,
            "_rounds_of": self._rounds(),
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # one that is loaded comes from torch's load_state_dict; a wrapper has no attributes of its own to tell by
        if "_options" in state:
            self._unpickle(dict(state))
        else:
            self._take_loaded(state)

    def _take_loaded(self, state: dict[str, Any]) -> None:
        """Go on from a loaded state dict."""
        shared = self._shared
        shared.refuse_averages("load_state_dict()")
        shared.alone("load_state_dict()", lambda: self._load_whole(state))

    def _load_whole(self, state: dict[str, Any]) -> None:
        """Load all of a state dict or nothing; an interrupt comes before or after."""
        shared = self._shared
        complete = complete_state(state, shared.param_groups, shared.defaults)
        groups = complete["param_groups"]
        turns = {id(group): turn_of(group) for group in groups}
        with HeldSignals():
            across_rebuilds = replace(shared.across_rebuilds, turns=turns)
            self._build(Loaded(groups, complete["state"], across_rebuilds))
            if shared.release is not None:
                shared.release.give_up(None)

    def _unpickle(self, state: dict[str, Any]) -> None:
        """Become the optimizer that was pickled or copied; its engine is built when it is first needed."""
        self._shared = shared = Shared(
            weakref.ref(self),
            dict(state.pop("_options")),
            AcrossRebuilds(reported=state.pop("_reported")),
            state.pop("_met_scaler"),
            state.pop("launches"),
            state.pop("_unscales", False),
            *(state.pop(name) for name in _OF_TORCH),
        )
        shared.lost = state.pop("_lost", shared.lost)
        self._players = {}
        rounds = state.pop("_rounds_of")
        super().__setstate__(state)
        self._complete_hooks()
        shared.across_rebuilds.rates = {id(group): group["lr"] for group in shared.param_groups}
        known = zip(shared.param_groups, rounds, strict=True)
        shared.across_rebuilds.turns = {
            id(group): turn for group, turn in known if turn is not None
        }
        shared.limits = ClipLimits.of(shared.options["max_grad_norm"])
        self._make_release()
        if shared.release is not None:  # the first backward pass may come before an engine
            shared.release.follow(shared.param_groups, None)
        if shared.options["mode"] == "alternating":
            shared.accumulated.note(shared.param_groups)
        register(self)

    def _make_release(self) -> None:
        """Have gradients released, where options say so."""
        options = self._shared.options
        if options.get("release") is not None:
            # in these steps a backward pass gives gradients to both players, one of whom does not move by them
            held: tuple[Role, ...] = ("body", "head") if options["mode"] == "alternating" else ()
            self._shared.release = Release(self._shared.optimizer, held)

    def _complete_hooks(self) -> None:
        """Have steps go through torch's own wrapper where this torch keeps hooks elsewhere."""
        for name in _HOOKS:
            self.__dict__.setdefault(name, UNKNOWN)
