"""TD3 on Pendulum in one optimizer: two critics, an actor of every second step, targets that are averages.

Run, with gymnasium installed: python examples/actor_critic.py
"""

import argparse
import random

import gymnasium
import numpy as np
import torch
from torch import nn

import stackelberg_fused as sf


def mlp(inputs: int) -> nn.Module:
    hidden = [nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(64, 1))


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critics = mlp(3), nn.ModuleList([mlp(4), mlp(4)])

    def act(self, state: torch.Tensor) -> torch.Tensor:
        return 2.0 * self.actor(state).tanh()

    def values(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return torch.stack([critic(torch.cat([state, action], 1)) for critic in self.critics])


def loss_of(agent: Agent, target: Agent, batch: list[torch.Tensor]) -> torch.Tensor:
    state, action, reward, following = batch
    with torch.no_grad():
        noise = (0.2 * torch.randn_like(action)).clamp(-0.5, 0.5)
        proposed = (target.act(following) + noise).clamp(-2.0, 2.0)
        aim = reward[:, None] + 0.99 * target.values(following, proposed).amin(0)
    agent.critics.requires_grad_(False)  # the actor's loss is none of theirs
    of_actor = -agent.values(state, agent.act(state))[0].mean()
    agent.critics.requires_grad_(True)
    return of_actor + (agent.values(state, action) - aim).square().mean(1).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    steps = parser.parse_args().steps
    random.seed(0)
    torch.manual_seed(0)
    noise, env, agent = np.random.default_rng(0), gymnasium.make("Pendulum-v1"), Agent()
    groups = sf.split_body_head(agent, head="critics")
    optimizer = sf.StackelbergAdam(
        groups, lr=1e-3, head_lr_ratio=1.0, update_every={"body": 2}, ema_decay=0.995
    )
    averaged = sf.AveragedModule(optimizer, agent)
    memory, returns, total, state = [], [], 0.0, env.reset(seed=0)[0]
    for step in range(1, steps + 1):
        with torch.no_grad():
            action = agent.act(torch.as_tensor(state)).numpy() + 0.2 * noise.normal(size=1)
        following, reward, _, ended, _ = env.step(action := action.clip(-2, 2))
        memory.append((state, action, reward / 10, following))
        state, total = following, total + reward
        if ended:
            returns.append(total)
            state, total = env.reset()[0], 0.0
        if step > 500:
            columns = zip(*random.choices(memory, k=128), strict=True)
            batch = [torch.as_tensor(np.array(column), dtype=torch.float32) for column in columns]
            loss_of(agent, averaged.module, batch).backward()
            # critics, every second time the actor, and the averages of both
            optimizer.step(zero_grad=True)
        if step % (steps // 5) == 0:
            print(f"step {step}: mean return of the last five episodes {np.mean(returns[-5:]):.0f}")


if __name__ == "__main__":
    main()
