"""The attributes of an optimizer, all of which lie in the object that it shares with wrappers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..engine.engine import Engine
from ..groups.option_types import Role
from ..layout.statistics import ClipLimits, LastStep
from .player import Player
from .release_refused import refuse_clipping
from .shared import Shared


def _set_by_a_scaler(name: str) -> Any:
    """`grad_scale` or `found_inf`: there only as long as somebody has set it."""

    def get(self: SharedAttributes) -> Any:
        if name not in self._shared.from_scaler:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._shared.from_scaler[name]

    def set_to(self: SharedAttributes, value: Any) -> None:
        self._shared.from_scaler[name] = value

    def delete(self: SharedAttributes) -> None:
        if self._shared.from_scaler.pop(name, self) is self:
            raise AttributeError(name)

    return property(get, set_to, delete, f"`{name}` of `torch.amp.GradScaler`'s protocol.")


class SharedAttributes(Optimizer):
    """An optimizer that has no attributes of its own but these, and those that torch sets once."""

    _shared: Shared
    _players: dict[str, Player]  # keeps them alive

    grad_scale = _set_by_a_scaler("grad_scale")
    found_inf = _set_by_a_scaler("found_inf")

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # a scaler that unscaled by itself would find no gradients, and say something else
        return self._shared.unscales or self._shared.release is not None

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, unscales: bool) -> None:
        self._shared.unscales = unscales

    @property
    def defaults(self) -> dict[str, Any]:
        """As in torch."""
        return self._shared.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._shared.defaults = defaults

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """As in torch."""
        return self._shared.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self._shared.state = state

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """As in torch."""
        return self._shared.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._shared.param_groups = groups

    @property
    def launches(self) -> int:
        """Kernels launched so far."""
        return self._shared.launches

    @launches.setter
    def launches(self, launches: int) -> None:
        self._shared.launches = launches

    @property
    def max_grad_norm(self) -> float | dict[Role, float] | None:
        """The norms to which gradients are clipped; may be set between steps.

        Raises:
            ValueError, TypeError: neither None, nor a number >= 0, nor a dict of such by role.
        """
        value = self._shared.options["max_grad_norm"]
        return dict(value) if isinstance(value, Mapping) else value

    @max_grad_norm.setter
    def max_grad_norm(self, value: float | dict[Role, float] | None) -> None:
        shared = self._shared
        if value is not None and shared.options["differentiable"]:
            raise ValueError(
                "max_grad_norm does not go with differentiable=True: clip with torch.nn.utils.clip_grad_norm_"
            )
        if shared.release is not None:
            refuse_clipping(value)
        shared.limits = ClipLimits.of(value)
        shared.options["max_grad_norm"] = dict(value) if isinstance(value, Mapping) else value

    @property
    def last_step(self) -> LastStep:
        """The report of the last step; nothing waits for the device until one of its tensors is read.

        Without `fused=True`, a gradient scaler skips a step by not calling it: this is then still of the one before.
        """
        return LastStep.of(self._shared.last, self._shared.found_inf)

    @property
    def _engine(self) -> Engine | None:
        return self._shared.engine

    @property
    def _options(self) -> dict[str, Any]:
        return self._shared.options
