"""Deep Q-learning (Mnih et al. 2015) on CartPole-v1, with a slow body and a fast last layer.

The result is the number of environment steps until the mean return of the last 100 episodes is 195. The body rate is
tuned for every ratio, including 1 (one rate for all layers), with separate seeds and on a grid that is extended
until the best rate is not at its end.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from ...optimizers.adam import StackelbergAdam
from .experiment import Cell, Cells, Experiment
from .plot_style import COLORS, new_figure, save
from .statistics import quartiles

RATIOS = (1, 3, 10, 30)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
FIRST_RATES = RATES[2:5]  # the others are tried if the best of these is at an end
GOAL, EPISODES = 195.0, 100
WIDTH, BATCH, DISCOUNT = 128, 64, 0.99
REPLAY, WARM_UP = 50_000, 1000
TRAIN_EVERY, COPY_EVERY = 2, 500
EXPLORE = 10_000  # steps in which the share of random actions falls from 1 to its minimum
MIN_RANDOM = 0.05


class Replay:
    """A replay buffer: the last transitions, sampled uniformly."""

    def __init__(self, size: int, generator: torch.Generator) -> None:
        self.states, self.next_states = torch.zeros(size, 4), torch.zeros(size, 4)
        self.actions = torch.zeros(size, dtype=torch.int64)
        self.rewards, self.ends = torch.zeros(size), torch.zeros(size)
        self._generator, self.count = generator, 0

    def add(self, state: Any, action: int, reward: float, next_state: Any, ended: bool) -> None:
        """Store a transition; it replaces the oldest one if the buffer is full."""
        index = self.count % len(self.actions)
        self.states[index] = torch.from_numpy(state)
        self.next_states[index] = torch.from_numpy(next_state)
        self.actions[index], self.rewards[index], self.ends[index] = action, reward, float(ended)
        self.count += 1

    def sample(self, size: int) -> tuple[Tensor, ...]:
        """Return states, actions, rewards, next states and ends of `size` transitions."""
        stored = min(self.count, len(self.actions))
        rows = torch.randint(stored, (size,), generator=self._generator)
        columns = (self.states, self.actions, self.rewards, self.next_states, self.ends)
        return tuple(column[rows] for column in columns)


def make_network() -> nn.Sequential:
    """Build the network that maps states [rows, 4] to values of both actions [rows, 2]; its last layer is the head."""
    return nn.Sequential(
        nn.Linear(4, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2)
    )


def play(ratio: float, rate: float, seed: int, max_steps: int) -> dict[str, Any]:
    """Learn until the goal is reached; `steps` is None if it is not reached within `max_steps`."""
    import gymnasium

    torch.manual_seed(seed)
    actions, sampling = random.Random(seed), torch.Generator().manual_seed(seed)
    environment = gymnasium.make("CartPole-v1")
    network, target = make_network(), make_network()
    target.load_state_dict(network.state_dict())
    optimizer = StackelbergAdam(
        [
            {"params": list(network[:-1].parameters())},
            {"params": list(network[-1].parameters()), "role": "head"},
        ],
        lr=rate,
        head_lr_ratio=ratio,
        max_grad_norm=10.0,
    )
    replay = Replay(REPLAY, sampling)
    returns: deque[float] = deque(maxlen=EPISODES)
    state, _ = environment.reset(seed=seed)
    total, best = 0.0, 0.0
    for step in range(1, max_steps + 1):
        random_share = max(MIN_RANDOM, 1.0 - step / EXPLORE)
        if actions.random() < random_share:
            action = actions.randrange(2)
        else:
            with torch.no_grad():
                action = int(network(torch.from_numpy(state)).argmax())
        next_state, reward, ended, truncated, _ = environment.step(action)
        replay.add(state, action, float(reward), next_state, ended)
        state, total = next_state, total + float(reward)
        if ended or truncated:
            returns.append(total)
            state, _ = environment.reset()
            total = 0.0
            if len(returns) == EPISODES:
                best = max(best, statistics.fmean(returns))
                if best >= GOAL:
                    return {"steps": step, "best_mean_return": best}
        if step >= WARM_UP and step % TRAIN_EVERY == 0:
            learn(network, target, optimizer, replay.sample(BATCH))
        if step % COPY_EVERY == 0:
            target.load_state_dict(network.state_dict())
    return {"steps": None, "best_mean_return": best}


def learn(
    network: nn.Module, target: nn.Module, optimizer: StackelbergAdam, batch: tuple[Tensor, ...]
) -> None:
    """Make one update by the Huber loss of the temporal differences."""
    states, actions, rewards, next_states, ends = batch
    with torch.no_grad():
        targets = rewards + DISCOUNT * (1 - ends) * target(next_states).amax(1)
    values = network(states).gather(1, actions[:, None]).squeeze(1)
    F.smooth_l1_loss(values, targets).backward()
    optimizer.step(zero_grad=True)


class CartPole(Experiment):
    name = "cartpole"
    computes_with = ("gymnasium",)
    shows_with = ("matplotlib", "scipy")

    def __init__(self, quick: bool) -> None:
        super().__init__(quick)
        self.ratios = (1, 10) if quick else RATIOS
        self.rates = (1e-3,) if quick else FIRST_RATES
        self.max_steps = 1200 if quick else 60_000
        self.tuning_seeds = (1000,) if quick else (1000, 1001, 1002)
        self.seeds = 1 if quick else 10

    def settings(self) -> dict[str, Any]:
        return {
            "ratios": self.ratios,
            "rates": self.rates if self.quick else RATES,
            "most_steps": self.max_steps,
            "tuning_seeds": self.tuning_seeds,
            "seeds": self.seeds,
            "goal": f"mean return {GOAL:g} over {EPISODES} episodes",
        }

    def _cell(self, ratio: float, rate: float, seed: int) -> Cell:
        return Cell(_key(ratio, rate, seed), partial(play, ratio, rate, seed, self.max_steps))

    def stages(self, cells: Cells) -> Iterator[list[Cell]]:
        yield self._tuning([(ratio, rate) for ratio in self.ratios for rate in self.rates])
        while not self.quick:
            further = [
                (ratio, rate) for ratio in self.ratios for rate in self._untried(cells, ratio)
            ]
            if not further:
                break
            yield self._tuning(further)
        control = self.best(cells, 1)
        yield [
            self._cell(ratio, rate, seed)
            for ratio in self.ratios
            for rate in sorted({self.best(cells, ratio), control})
            for seed in range(self.seeds)
        ]

    def _tuning(self, pairs: list[tuple[float, float]]) -> list[Cell]:
        return [self._cell(*pair, seed) for pair in pairs for seed in self.tuning_seeds]

    def _tried(self, cells: Cells, ratio: float) -> list[float]:
        """Return the rates that have been tried with all tuning seeds."""
        last = self.tuning_seeds[-1]
        return [rate for rate in RATES if _key(ratio, rate, last) in cells]

    def _untried(self, cells: Cells, ratio: float) -> list[float]:
        """Return the neighbours of the best rate that have not been tried."""
        best = RATES.index(self.best(cells, ratio))
        neighbours = [RATES[i] for i in (best - 1, best + 1) if 0 <= i < len(RATES)]
        return [rate for rate in neighbours if rate not in self._tried(cells, ratio)]

    def _steps(self, cells: Cells, ratio: float, rate: float, seeds: Any) -> list[float]:
        """Return the steps by seed; infinity means that the goal was not reached."""
        results = [cells[_key(ratio, rate, seed)]["steps"] for seed in seeds]
        return [math.inf if steps is None else steps for steps in results]

    def best(self, cells: Cells, ratio: float) -> float:
        """Return the rate with the smallest median number of steps of the tuning seeds, then the smallest mean."""

        def score(rate: float) -> tuple[float, float]:
            steps = [
                min(s, 2 * self.max_steps)
                for s in self._steps(cells, ratio, rate, self.tuning_seeds)
            ]
            return statistics.median(steps), statistics.fmean(steps)

        return min(self._tried(cells, ratio), key=score)

    def tables(self, cells: Cells) -> list[Table]:
        table = Table(title=f"CartPole-v1: steps to a mean return of {GOAL:g}, {self.seeds} seeds")
        for column in ("ratio", "body rate", "median", "quartiles", "reached it"):
            table.add_column(column)
        control = self.best(cells, 1)
        for ratio in self.ratios:
            for rate in dict.fromkeys((self.best(cells, ratio), control)):
                steps = self._steps(cells, ratio, rate, range(self.seeds))
                low, middle, high = quartiles(steps)
                mark = " (best)" if rate == self.best(cells, ratio) else " (the best of ratio 1)"
                reached = f"{sum(map(math.isfinite, steps))} of {len(steps)}"
                table.add_row(
                    f"{ratio:g}",
                    f"{rate:g}{mark}",
                    _format_steps(middle),
                    f"{_format_steps(low)} .. {_format_steps(high)}",
                    reached,
                )
        return [table]

    def verdict(self, cells: Cells) -> list[str]:
        from scipy.stats import mannwhitneyu

        control = self._steps(cells, 1, self.best(cells, 1), range(self.seeds))
        lines = []
        for ratio in self.ratios:
            if ratio == 1:
                continue
            steps = self._steps(cells, ratio, self.best(cells, ratio), range(self.seeds))
            capped = [[min(s, 2 * self.max_steps) for s in side] for side in (steps, control)]
            p = float(mannwhitneyu(*capped).pvalue)
            faster = quartiles(steps)[1] < quartiles(control)[1]
            lines.append(
                f"ratio {ratio:g} against one tuned rate for all layers: {'fewer' if faster else 'not fewer'} steps in "
                f"the median, p = {p:.2g} (Mann-Whitney)."
            )
        return lines

    def check(self, cells: Cells) -> list[str]:
        if self.quick:
            # the pole stands for some 20 steps by chance
            least = min(cell["best_mean_return"] for cell in cells.values())
            return [] if least == 0.0 or least > 10 else [f"a mean return of {least}"]
        control = self._steps(cells, 1, self.best(cells, 1), range(self.seeds))
        reached = sum(map(math.isfinite, control))
        failures = [
            f"ratio {ratio:g}: the best rate is at an end of the grid"
            for ratio in self.ratios
            if self.best(cells, ratio) in (RATES[0], RATES[-1])
        ]
        if reached <= self.seeds / 2:
            failures.append(f"the control reached the goal with {reached} seeds only")
        return failures

    def draw(self, cells: Cells, path: Path) -> None:
        figure, (axis,) = new_figure(1)
        for x, ratio in enumerate(self.ratios):
            rate = self.best(cells, ratio)
            steps = [
                min(s, self.max_steps) for s in self._steps(cells, ratio, rate, range(self.seeds))
            ]
            low, middle, high = quartiles(steps)
            # each seed has its own x, so that equal numbers do not cover each other
            seed_x = [x + 0.04 * seed for seed in range(len(steps))]
            axis.plot(seed_x, steps, "o", color=COLORS[1], alpha=0.6, ms=4)
            axis.errorbar(
                x - 0.1,
                middle,
                yerr=[[middle - low], [high - middle]],
                fmt="s",
                color=COLORS[0],
                capsize=5,
            )
        labels = [f"{ratio:g}\nrate {self.best(cells, ratio):g}" for ratio in self.ratios]
        axis.set_xticks([x + 0.1 for x in range(len(self.ratios))], labels)
        axis.grid(visible=False, axis="x")
        axis.set(xlabel="head/body ratio", ylabel=f"steps to a mean return of {GOAL:g}")
        note = f"square: median and quartiles of the {self.seeds} seeds beside it; not reached: at {self.max_steps}"
        save(figure, path, note)


def _key(ratio: float, rate: float, seed: int) -> str:
    return f"ratio {ratio:g}, rate {rate:g}, seed {seed}"


def _format_steps(steps: float) -> str:
    return f"{steps:,.0f}" if math.isfinite(steps) else "never"
