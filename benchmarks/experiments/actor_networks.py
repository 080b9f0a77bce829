"""The networks of soft actor-critic (Haarnoja et al. 2018) and their losses, as CleanRL's `sac_continuous_action`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STATES, ACTIONS, TORQUE = 3, 1, 2.0  # of Pendulum-v1
DISCOUNT = 0.99
LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


class Batch(NamedTuple):
    """Transitions, [rows, ...]; Pendulum has no last state, only a time limit."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor


class Actor(nn.Module):
    """Maps states to a normal distribution that is squashed into the range of torques."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(STATES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.mean, self.log_std = nn.Linear(width, ACTIONS), nn.Linear(width, ACTIONS)

    def forward(self, states: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return actions, [rows, 1], and the logarithm of their density, [rows]; without noise the middle ones."""
        features = self.body(states)
        mean, log_std = self.mean(features), torch.tanh(self.log_std(features))
        log_std = LOG_STD_MIN + 0.5 * (LOG_STD_MAX - LOG_STD_MIN) * (log_std + 1.0)
        noise = torch.zeros_like(mean) if noise is None else noise
        squashed = torch.tanh(mean + log_std.exp() * noise)
        log_density = -0.5 * noise.square() - log_std - HALF_LOG_2_PI
        log_density = log_density - torch.log(TORQUE * (1.0 - squashed.square()) + 1e-6)
        return TORQUE * squashed, log_density.sum(1)


class Critics(nn.Module):
    """Both Q networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Sequential(
                *(nn.Linear(STATES + ACTIONS, width), nn.ReLU()),
                *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)),
            )
            for _ in range(2)
        )

    def forward(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of both, [rows] each."""
        rows = torch.cat([states, actions], 1)
        return self.first(rows).squeeze(1), self.second(rows).squeeze(1)


class Agent:
    """The networks, and the temperature that the entropy has in the loss.

    Attributes:
        log_temperature: begins at 0; the temperature holds the entropy at minus the number of actions.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        self.critics, self.actor = Critics(width), Actor(width)
        self.log_temperature = nn.Parameter(torch.zeros(1))
        self._generator = generator

    def noise(self, rows: int) -> Tensor:
        """Draw what makes actions random, [rows, 1]."""
        return torch.randn(rows, ACTIONS, generator=self._generator)

    def critics_loss(self, batch: Batch, target: Callable[..., Any]) -> Tensor:
        """Return the squared temporal differences of both; `target` gives the averaged critics' values."""
        with torch.no_grad():
            actions, log_density = self.actor(batch.next_states, self.noise(len(batch.rewards)))
            value = torch.minimum(*target(batch.next_states, actions))
            value = value - self.log_temperature.exp() * log_density
            wanted = batch.rewards + DISCOUNT * value
        first, second = self.critics(batch.states, batch.actions)
        return F.mse_loss(first, wanted) + F.mse_loss(second, wanted)

    def actor_losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses of the actor and of the temperature; the first is a function of the critics too."""
        actions, log_density = self.actor(batch.states, self.noise(len(batch.rewards)))
        value = torch.minimum(*self.critics(batch.states, actions))
        temperature = self.log_temperature.exp()
        actor_loss = (temperature.detach() * log_density - value).mean()
        return actor_loss, -(temperature * (log_density.detach() - ACTIONS)).mean()
