"""Steps that only ask for state: tools that save checkpoints take them to learn which state an optimizer has.

torch's `get_optimizer_state_dict` gives an optimizer without state gradients of zeros, sets its rates to 0, and has it
take a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from ..groups.rules import as_number
from ..memory.sharding import is_sharded, local_tensor, sum_over_ranks
from .across_rebuilds import AcrossRebuilds


class StateRequests:
    """Recognises such steps; costs nothing once the parameters have state.

    Args:
        groups: the optimizer's param groups.
        state: the optimizer's state.
        across_rebuilds: remembers the rates that groups were given to the optimizer with, to which those of new ones
            are added, and whether ranks have trained together.

    Attributes:
        without_state: no state was seen yet; false for nearly all of an optimizer's life.
        asks_ranks: there are shards, and ranks have taken no step of training together, see `is_one_on_all`.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        state: Mapping[Tensor, dict[str, Any]],
        across_rebuilds: AcrossRebuilds,
    ) -> None:
        given = across_rebuilds.rates
        self._groups, self._state, self._given = groups, state, given
        self._across_rebuilds = across_rebuilds
        params = [param for group in groups for param in group["params"]]
        self._meshes = [*dict.fromkeys(p.device_mesh for p in params if is_sharded(p))]
        self.without_state = not across_rebuilds.have_ranks_trained
        self.asks_ranks = bool(self._meshes) and self.without_state
        for gone in given.keys() - {id(group) for group in groups}:
            del given[gone]
        for group in groups:
            given.setdefault(id(group), group["lr"])

    def is_one(self, role: str | None) -> bool:
        """Tell whether a step of a role, or of all, can have no other purpose.

        No parameter of either player has state yet, every rate was set to 0, and every trained parameter has a
        gradient, all of zeros.
        A user who gave the rate 0 means the step: it projects onto constraints, for example.
        """
        if not self.may_be_one(role):
            return False
        return _have_zero_gradients([p for group in self._of(role) for p in group["params"]])

    def may_be_one(self, role: str | None) -> bool:
        """As `is_one`, before gradients are looked at."""
        if not self.without_state:
            return False
        params = [param for group in self._groups for param in group["params"]]
        entries = [self._state.get(param) for param in params]
        if any(entry for entry in entries if isinstance(entry, dict)):
            self.without_state = False
            return False
        if any(not isinstance(entry, (dict, NoneType)) for entry in entries):
            return False  # to be refused by name
        return all(self._was_set_to_zero(group) for group in self._of(role))

    def is_one_on_all(self, role: str | None) -> bool:
        """As `is_one`, for ranks that wait for each other in a step: all of them call this, and come to one answer.

        They ask each other whatever they know themselves: one of them may have zeros alone, or no elements, in a step
        of training, or state that others lack, or another rate. After their first step of training they never do
        again.
        """
        objections = torch.tensor(float(not self.is_one(role)))
        for mesh in self._meshes:
            objections.sign_()
            sum_over_ranks(mesh, objections)
        answer = not bool(objections)
        self.without_state = self.asks_ranks = answer
        self._across_rebuilds.have_ranks_trained = not answer
        return answer

    def _of(self, role: str | None) -> list[dict[str, Any]]:
        return [group for group in self._groups if role in (None, group["role"])]

    def _was_set_to_zero(self, group: dict[str, Any]) -> bool:
        return group["lr"] is not self._given.get(id(group)) and _is_zero(group["lr"])


def _is_zero(lr: Any) -> bool:
    """Tell whether a rate is 0; of one on a device, which would have to be waited for, the answer is no."""
    return not (isinstance(lr, Tensor) and lr.device.type != "cpu") and as_number(lr) == 0


def _have_zero_gradients(params: list[Tensor]) -> bool:
    grads = [param.grad for param in params if param.requires_grad or param.grad is not None]
    if not grads or any(grad is None or grad.layout is not torch.strided for grad in grads):
        return False
    return not any(bool(local_tensor(grad).detach().any()) for grad in grads)
