"""One player of an optimizer, as an optimizer of its own for schedulers and gradient scalers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from ..groups.option_types import Role

if TYPE_CHECKING:
    from .base import StackelbergOptimizer


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

    def __init__(self, owner: StackelbergOptimizer, role: Role) -> None:
        # the owner holds its players: a reference back would keep both, and all state, until the collector comes
        self._shared, self._class, self.role = owner._shared, type(owner), role
        # a scheduler puts a `step` there that asks for the owner
        self._attributes = {k: v for k, v in vars(owner).items() if k not in ("_players", "step")}
        self.stepper: Any = None  # a wrapper of the owner, to be stepped in its place
        self.was_stepped = False  # a scaler skips a step by not calling it
        self._is_built = False
        # torch's own attributes: hooks and the like; the group that it asks for goes nowhere
        super().__init__([{"params": []}], {})
        self._is_built = True

    @property
    def _owner(self) -> StackelbergOptimizer:
        """The optimizer; where nobody holds it any more, another object that is the same in all but identity."""
        owner = self._shared.optimizer()
        if owner is None:
            owner = self._class.__new__(self._class)
            owner.__dict__.update(self._attributes, _players={})
            self._shared.optimizer = ref(owner)
        return cast("StackelbergOptimizer", owner)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return those of the owner that have this role now."""
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
    def _step_supports_amp_scaling(self) -> bool:
        """The owner's: whether a gradient scaler leaves unscaling and skipping to the step."""
        return self._owner._step_supports_amp_scaling

    @property
    def _opt_called(self) -> bool:
        """Tell schedulers, which warn of a missing step, that this player was stepped, perhaps by its owner."""
        return self.role in self._shared.stepped

    @_opt_called.setter
    def _opt_called(self, called: bool) -> None:
        pass  # the owner knows

    def step(self, closure: Callable[[], Any] | None = None, *, zero_grad: bool = False) -> Any:
        """As the owner's `step(closure, role=...)`."""
        # a gradient scaler hands these to the optimizer it was given, which is this one
        own, names = self.__dict__, ("grad_scale", "found_inf")
        from_scaler = self._shared.from_scaler
        given = {name: own[name] for name in names if own.get(name) is not None}
        from_scaler.update(given)
        self.was_stepped = True
        try:
            stepper = self.stepper or self._owner
            return stepper.step(closure, role=self.role, zero_grad=zero_grad)
        except BaseException:
            # or the scaler would take what is left for a scale of this player's own
            for name in names:
                own.pop(name, None)
            raise
        finally:
            for name in names:
                from_scaler.pop(name, None)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the owner's, for this player's gradients."""
        self._owner.zero_grad(set_to_none, role=self.role)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the owner's, with this role."""
        if self._is_built:
            self._owner.add_param_group({**param_group, "role": self.role})

    def replace(
        self, parameter: Tensor, new: Tensor, rows: Tensor | Sequence[int] | None = None
    ) -> None:
        """As the owner's, of a parameter of this player; ValueError for one of the other player."""
        if not any(parameter is p for group in self.param_groups for p in group["params"]):
            raise ValueError(f"replace(): it is no parameter of the player {self.role!r}")
        self._owner.replace(parameter, new, rows)

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
