"""One player of an optimizer, as an optimizer of its own for schedulers and gradient scalers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from ..groups.option_types import Role

if TYPE_CHECKING:
    from .base import StackelbergOptimizer
    from .engine_holder import EngineHolder


def player_of(owner: StackelbergOptimizer, role: Role) -> Player:
    """Unpickle or copy a player: return that of the optimizer that came along."""
    return owner.player(role)


class Player(Optimizer):
    """The param groups of one role, seen as an optimizer; everything else is its owner's.

    Groups are the owner's own dicts, so a rate that a scheduler sets here is the rate that is applied. `step()` is the
    owner's `step(role=...)`.

    Args:
        owner: the optimizer.
        role: "body" or "head".
    """

    _step_supports_amp_scaling = True

    def __init__(self, owner: StackelbergOptimizer, role: Role) -> None:
        # the owner holds its players: a reference back would keep both, and all state, until the collector comes
        self._known, self._class = ref(owner), type(owner)
        self._attributes: dict[str, Any] | None = None
        # Lightning wraps optimizers in objects that pretend to be of their class, and leave nothing when they go
        self._wrapper = None if "_players" in vars(owner) else owner
        self.role = role
        self._is_built = False
        # torch's own attributes: hooks and the like; the group that it asks for goes nowhere
        super().__init__([{"params": []}], {})
        self._is_built = True

    @property
    def _owner(self) -> StackelbergOptimizer:
        """The optimizer; where nobody holds it any more, another object that is the same in all but identity."""
        owner = self._known()
        if owner is None:
            owner = self._class.__new__(self._class)
            owner.__dict__ = self._attributes or {}
            self._known = ref(owner)
        return owner

    def outlive(self, owner: EngineHolder, attributes: dict[str, Any]) -> None:
        """Keep what makes up an optimizer that nobody holds any more, if it is this player's."""
        # the collector clears references before; another one may share its players, as Lightning's wrapper does
        if self._known() is owner or (self._known() is None and self._attributes is None):
            self._attributes = attributes

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the owner that have this role now."""
        return [group for group in self._owner.param_groups if group["role"] == self.role]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if self._is_built:
            raise AttributeError("a player has the groups of its optimizer: change them there")

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The owner's."""
        return self._owner.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        if self._is_built:
            raise AttributeError("a player has the state of its optimizer: change it there")

    @property
    def defaults(self) -> dict[str, Any]:
        """The owner's."""
        return self._owner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        if self._is_built:
            raise AttributeError("a player has the defaults of its optimizer: change them there")

    @property
    def _opt_called(self) -> bool:
        """Tell schedulers, which warn of a missing step, that this player was stepped, perhaps by its owner."""
        return self.role in self._owner._stepped

    @_opt_called.setter
    def _opt_called(self, called: bool) -> None:
        pass  # the owner knows

    def step(self, closure: Callable[[], Any] | None = None, *, zero_grad: bool = False) -> Any:
        """As the owner's `step(closure, role=...)`."""
        given = {name: self.__dict__.get(name) for name in ("grad_scale", "found_inf")}
        owner = vars(self._owner)
        # a gradient scaler hands these to the optimizer it was given, which is this one
        owner.update((name, value) for name, value in given.items() if value is not None)
        try:
            return self._owner.step(closure, role=self.role, zero_grad=zero_grad)
        finally:
            for name in given:
                owner.pop(name, None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the owner's, for this player's gradients."""
        self._owner.zero_grad(set_to_none, role=self.role)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the owner's, with this role."""
        if self._is_built:
            self._owner.add_param_group({**param_group, "role": self.role})

    def state_dict(self) -> dict[str, Any]:
        """The owner's, of both players: it is one optimizer."""
        return self._owner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The owner's, of both players."""
        self._owner.load_state_dict(state_dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return player_of, (self._owner, self.role)

    def __repr__(self) -> str:
        return f"{type(self._owner).__name__}.player({self.role!r})"
