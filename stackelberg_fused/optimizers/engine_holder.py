"""An optimizer's hold on its engine: built once, built again after edits, and left out of pickles."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from ..engine.across_rebuilds import AcrossRebuilds
from ..engine.engine import Engine
from ..engine.state import check_loaded
from ..groups.hyperparameters import turn_of
from ..groups.lost_settings import LostSettings
from ..groups.param_groups import check_head, check_hyperparameters, check_params, param_label
from ..layout.statistics import ClipLimits, Statistics
from ..memory.overlap import check_overlap
from .accumulated import AccumulatedGradients
from .checkpoint import complete_state
from .rebuilt import register

if TYPE_CHECKING:
    from .player import Player


class EngineHolder(Optimizer):
    """Builds the engine, and builds it again where groups, parameters or state were edited.

    A subclass sets `_options`, `_lost`, `_across_rebuilds`, `_met_scaler` and `launches`, which outlive pickling.
    """

    _options: dict[str, Any]
    _lost: LostSettings
    _across_rebuilds: AcrossRebuilds
    _met_scaler: bool
    launches: int

    def _reset_transients(self) -> None:
        """Set what neither pickles nor copies keep."""
        self._engine: Engine | None = None
        self._is_stale = False  # the engine is that of parameters or state that are no longer there
        self._is_swapped = False  # parameters hold their averages
        self._players: dict[str, Player] = {}
        self._stepped: set[str] = set()  # players that took a step; their schedulers ask
        self._last: tuple[int, Statistics | None] = (0, None)
        self._found_inf: Tensor | None = None
        self._accumulated = AccumulatedGradients()  # for mode="alternating"
        register(self)

    def _refuse_averages(self, what: str) -> None:
        if self._is_swapped:
            raise RuntimeError(
                f"{what}: the parameters hold their averages; leave ema_weights() first"
            )

    def _labelled(self, groups: Iterable[dict[str, Any]]) -> list[tuple[str, Tensor]]:
        labelled: dict[int, tuple[str, Tensor]] = {}
        for index, group in enumerate(groups):
            for position, param in enumerate(group["params"]):
                labelled.setdefault(id(param), (param_label(index, group, position), param))
        return list(labelled.values())

    def _build(self, previous: Any = None) -> Engine:
        options = self._options
        return Engine(
            self.param_groups,
            self.state,
            options["backend"],
            options["flatten"],
            options["grads"] == "flat",
            self._across_rebuilds,
            previous,
        )

    def _build_again(self) -> Engine:
        """Build the engine for groups or state that somebody edited, after checking them as if they were new."""
        self._is_stale = (
            True  # until there is one: an edit that is refused is refused at every step
        )
        for index, group in enumerate(self.param_groups):
            check_hyperparameters(group, index)
            check_params(group, index)
        check_head(self.param_groups)
        check_overlap(self._labelled(self.param_groups))
        check_loaded(self.state, self.param_groups)
        self._engine, self._is_stale = self._build(), False
        return self._engine

    def _current(self) -> Engine:
        """The engine as a question between steps needs it; a step itself finds out what was edited."""
        engine = self._ready()
        return self._build_again() if engine.was_edited() else engine

    def _ready(self) -> Engine:
        """The engine, built again where there is none or it belongs to other groups or another state."""
        engine = self._engine
        if (
            engine is None
            or self._is_stale
            or engine.is_broken
            or engine.state is not self.state
            or engine.groups is not self.param_groups
        ):
            return self._build_again()
        return engine

    def _rounds(self) -> list[tuple[int, str] | None]:
        """The `update_every` and `update_every_grads` to which each group's counts belong; None before the first."""
        return [self._across_rebuilds.turns.get(id(group)) for group in self.param_groups]

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_averages("pickling or copying an optimizer")
        own = {
            name: self.__dict__[name] for name in ("_options", "_lost", "_met_scaler", "launches")
        }
        own["_reported"], own["_rounds_of"] = self._across_rebuilds.reported, self._rounds()
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "param_groups" in self.__dict__:
            self._take_loaded(state)
        else:
            self._unpickle(dict(state))

    def _take_loaded(self, state: dict[str, Any]) -> None:
        """Go on from a loaded state dict."""
        self._refuse_averages("load_state_dict()")
        previous = self.state
        super().__setstate__(complete_state(state, self.param_groups, self.defaults))
        self._across_rebuilds.turns = {id(group): turn_of(group) for group in self.param_groups}
        self._engine, self._is_stale = self._build(previous), False

    def _unpickle(self, state: dict[str, Any]) -> None:
        """Become the optimizer that was pickled or copied; its engine is built when it is first needed."""
        self._across_rebuilds = AcrossRebuilds(reported=state.pop("_reported"))
        rounds = state.pop("_rounds_of")
        super().__setstate__(state)
        known = zip(self.param_groups, rounds, strict=True)
        self._across_rebuilds.turns = {id(group): turn for group, turn in known if turn is not None}
        self._limits = ClipLimits.of(self._options["max_grad_norm"])
        self._reset_transients()
