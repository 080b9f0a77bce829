"""Optimizers of an actor-critic: one of ours, in one launch or in two, beside three of torch's and averages by hand."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...optimizers.adam import StackelbergAdam
from ...optimizers.averaged_module import AveragedModule
from .actor_networks import Agent, Batch

ACTOR_EVERY = 2  # updates of the critics
DECAY = 0.995  # of the target networks


class Rates(NamedTuple):
    """Of the parts; CleanRL gives the temperature the rate of the critics."""

    critics: float
    actor: float
    temperature: float


class ActorCriticOptimizer(ABC):
    """Moves critics, actor, temperature and target networks.

    Attributes:
        target: the critics with averaged weights.
        launches: kernels of ours so far; None where nobody counts.
    """

    target: Callable[..., Any]

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._moving = list(agent.actor.parameters())
        self._updates = 0

    @property
    def launches(self) -> int | None:
        return None

    def read_averages(self) -> None:  # noqa: B027 (those by hand hold them)
        """Have the target networks hold the averages of now."""

    @abstractmethod
    def after_critics(self) -> None:
        """The critics' gradients are there."""

    @abstractmethod
    def after_actor(self, has_turn: bool) -> None:
        """Those of actor and temperature are there too, if it is their turn."""

    def update(self, batch: Batch) -> None:
        """Make one update by a batch: actor and temperature move in every second one."""
        self._updates += 1
        self.read_averages()
        has_turn = self._updates % ACTOR_EVERY == 0
        self.agent.critics_loss(batch, self.target).backward()
        self.after_critics()
        if has_turn:
            actor_loss, temperature_loss = self.agent.actor_losses(batch)
            # not to the critics, whom this loss goes through
            actor_loss.backward(inputs=self._moving)
            temperature_loss.backward()
        self.after_actor(has_turn)


class OneLaunch(ActorCriticOptimizer):
    """All that moves moves in one launch: the actor, where it has its turn, by the critics of before.

    Args:
        backend: as `StackelbergAdam` takes it.
    """

    group_options: ClassVar[dict[str, Any]] = {}  # of actor and temperature

    def __init__(self, agent: Agent, rates: Rates, backend: str = "auto") -> None:
        super().__init__(agent)
        more = self.group_options
        groups: list[dict[str, Any]] = [
            {"params": self._moving, "lr": rates.actor, **more},
            {"params": [agent.log_temperature], "lr": rates.temperature, **more},
            {
                "params": agent.critics.parameters(),
                "lr": rates.critics,
                "role": "head",
                "ema_decay": DECAY,
            },
        ]
        self.optimizer = StackelbergAdam(groups, backend=backend)
        self._averaged = AveragedModule(self.optimizer, agent.critics)

    @property
    def launches(self) -> int | None:
        return self.optimizer.launches

    def read_averages(self) -> None:
        # as `self._averaged(...)` would, but apart from the forward, so that it is timed
        self.target = self._averaged.module

    def after_critics(self) -> None:
        """Wait for the actor's gradients."""

    def after_actor(self, has_turn: bool) -> None:
        self.optimizer.step(role=None if has_turn else "head", zero_grad=True)


class OneLaunchByTurns(OneLaunch):
    """The same, to the bit, with the turns left to the optimizer."""

    group_options: ClassVar[dict[str, Any]] = {"update_every": ACTOR_EVERY}

    def after_actor(self, has_turn: bool) -> None:
        self.optimizer.step(zero_grad=True)


class CriticsFirst(OneLaunch):
    """The critics move first, then the actor by the new ones, as in CleanRL: one launch, and another in its turn."""

    def after_critics(self) -> None:
        self.optimizer.step(role="head", zero_grad=True)

    def after_actor(self, has_turn: bool) -> None:
        if has_turn:
            self.optimizer.step(role="body", zero_grad=True)


class ThreeAdams(ActorCriticOptimizer):
    """`torch.optim.Adam` for each part, the critics first, and target networks that are averaged by hand."""

    fused: bool | None = True

    def __init__(self, agent: Agent, rates: Rates) -> None:
        super().__init__(agent)
        parts = list(agent.critics.parameters()), self._moving, [agent.log_temperature]
        self._critics, self._actor, self._temperature = (
            torch.optim.Adam(part, lr=rate, fused=self.fused)
            for part, rate in zip(parts, rates, strict=True)
        )
        self._weights: list[Tensor] = parts[0]
        averaged = copy.deepcopy(agent.critics).requires_grad_(False)
        self.averages = list(averaged.parameters())
        self.target = averaged

    def after_critics(self) -> None:
        self._critics.step()
        self._critics.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self._weights, 1 - DECAY)

    def after_actor(self, has_turn: bool) -> None:
        if has_turn:
            for optimizer in (self._actor, self._temperature):
                optimizer.step()
                optimizer.zero_grad()


class ThreeDefaultAdams(ThreeAdams):
    """As torch constructs them if nobody asks for `fused`: on a CPU, one operator after the other."""

    fused = None


class ThreeAdamsTogether(ThreeAdams):
    """Three Adams in the order of one launch: all gradients, then all steps."""

    def after_critics(self) -> None:
        """Wait for the actor's gradients."""

    def after_actor(self, has_turn: bool) -> None:
        super().after_critics()
        super().after_actor(has_turn)
