"""Training of an actor-critic on Pendulum-v1: replay, episodes, and the returns of the policy that was learned."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .actor_networks import ACTIONS, STATES, TORQUE, Agent, Batch
from .actor_optimizers import ActorCriticOptimizer

EPISODE = 200  # steps, after which Pendulum-v1 stops
JUDGED_FROM = 5_000_000  # seeds of the episodes that judge, the same for every agent


@dataclass(frozen=True)
class Size:
    """How much there is to do.

    Attributes:
        width: of all layers within.
        batch: transitions of an update.
        steps: of the environment; after the random ones, each is followed by an update.
        random: steps at first, with actions drawn uniformly.
        last: episodes of training whose mean return is reported.
        judged: episodes of the policy without noise, after training.
    """

    width: int = 64
    batch: int = 128
    steps: int = 4000
    random: int = 400
    last: int = 8
    judged: int = 20


class Replay:
    """All transitions so far, sampled uniformly."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        widths = STATES, ACTIONS, 1, STATES
        self._columns = [torch.zeros(size, width) for width in widths]
        self._generator, self.count = generator, 0

    def add(self, state: Tensor, action: Tensor, reward: float, next_state: Tensor) -> None:
        """Store a transition."""
        row = state, action, reward, next_state
        for column, value in zip(self._columns, row, strict=True):
            column[self.count] = value
        self.count += 1

    def sample(self, rows: int) -> Batch:
        """Return transitions, with rewards as [rows]."""
        chosen = torch.randint(self.count, (rows,), generator=self._generator)
        states, actions, rewards, next_states = (column[chosen] for column in self._columns)
        return Batch(states, actions, rewards.squeeze(1), next_states)


def train(agent: Agent, optimizer: ActorCriticOptimizer, seed: int, size: Size) -> list[float]:
    """Train an agent; return the returns of all episodes, of which each seed has its own starts."""
    import gymnasium

    environment = gymnasium.make("Pendulum-v1")
    generator = torch.Generator().manual_seed(500_000 + seed)  # another than the agent's
    replay = Replay(size.steps, generator)
    returns: list[float] = []
    state, total = torch.empty(0), 0.0
    for step in range(size.steps):
        if step % EPISODE == 0:
            first, _ = environment.reset(seed=1000 * seed + step // EPISODE)
            state, total = torch.from_numpy(first), 0.0
        if step < size.random:
            action = TORQUE * (2.0 * torch.rand(ACTIONS, generator=generator) - 1.0)
        else:
            with torch.no_grad():
                action = agent.actor(state[None], agent.noise(1))[0][0]
        found, reward, *_ = environment.step(action.numpy())
        next_state = torch.from_numpy(found)
        replay.add(state, action, float(reward), next_state)
        state, total = next_state, total + float(reward)
        if (step + 1) % EPISODE == 0:
            returns.append(total)
        if step >= size.random:
            optimizer.update(replay.sample(size.batch))
    return returns


def judge(agent: Agent, episodes: int) -> float:
    """Return the mean return of the policy without noise, over the same starts for every agent."""
    import gymnasium

    environment = gymnasium.make("Pendulum-v1")
    returns = []
    for episode in range(episodes):
        state, _ = environment.reset(seed=JUDGED_FROM + episode)
        total = 0.0
        for _ in range(EPISODE):
            with torch.no_grad():
                action = agent.actor(torch.from_numpy(state)[None])[0][0]
            state, reward, *_ = environment.step(action.numpy())
            total += float(reward)
        returns.append(total)
    return statistics.fmean(returns)


def play(make: Any, rates: Any, seed: int, size: Size) -> dict[str, Any]:
    """Train and judge one agent; `make` builds its optimizer."""
    agent = Agent(size.width, torch.Generator().manual_seed(seed))
    optimizer = make(agent, rates)
    returns = train(agent, optimizer, seed, size)
    return {
        "last": round(statistics.fmean(returns[-size.last :]), 2),
        "judged": round(judge(agent, size.judged), 2),
        "returns": [round(value, 1) for value in returns],
        "launches": optimizer.launches,
    }
