"""What an update of an actor-critic costs: torch operators, launches and time, of the optimizer's part and in all."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .actor_networks import ACTIONS, STATES, Agent, Batch
from .actor_optimizers import ACTOR_EVERY, ActorCriticOptimizer, Rates

RATES = Rates(1e-3, 3e-4, 1e-3)
PARTS = ("after_critics", "after_actor", "read_averages")  # methods that are the optimizer's part


class CountedOperators(TorchDispatchMode):
    """Counts the operators that torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def prepared(
    make: Callable[[Agent, Rates], ActorCriticOptimizer], width: int, rows: int
) -> tuple[ActorCriticOptimizer, Batch]:
    """Return an optimizer that has taken its first steps, and a batch to go on with."""
    generator = torch.Generator().manual_seed(0)
    optimizer = make(Agent(width, generator), RATES)
    sizes = (rows, STATES), (rows, ACTIONS), (rows,), (rows, STATES)
    batch = Batch(*(torch.randn(size, generator=generator) for size in sizes))
    for _ in range(2 * ACTOR_EVERY):
        optimizer.update(batch)
    return optimizer, batch


def count(make: Callable[[Agent, Rates], ActorCriticOptimizer]) -> dict[str, float]:
    """Return torch operators of the optimizer's part, and launches of ours, as means over the updates of a round."""
    optimizer, batch = prepared(make, 8, 4)
    before, mode = optimizer.launches, CountedOperators()
    for part in PARTS:
        call = getattr(optimizer, part)

        def counted(*args: Any, call: Any = call) -> None:
            with mode:
                call(*args)

        setattr(optimizer, part, counted)
    for _ in range(ACTOR_EVERY):
        optimizer.update(batch)
    launches = 0 if before is None else (optimizer.launches or 0) - before
    return {"operators": mode.count / ACTOR_EVERY, "launches": launches / ACTOR_EVERY}


class Stopwatch:
    """Adds up the time within the optimizer's part of updates."""

    def __init__(self, optimizer: ActorCriticOptimizer) -> None:
        self.spent = 0
        for part in PARTS:
            setattr(optimizer, part, self._timed(getattr(optimizer, part)))

    def _timed(self, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            before = time.thread_time_ns()
            call(*args)
            self.spent += time.thread_time_ns() - before

        return timed


def time_updates(
    makes: dict[str, Callable[[Agent, Rates], ActorCriticOptimizer]],
    width: int,
    rows: int,
    rounds: int,
) -> dict[str, dict[str, list[int]]]:
    """Return nanoseconds of an update, by optimizer: of the optimizer's part and in all, in interleaved rounds."""
    ready = {name: prepared(make, width, rows) for name, make in makes.items()}
    watches = {name: Stopwatch(optimizer) for name, (optimizer, _) in ready.items()}
    found: dict[str, dict[str, list[int]]] = {
        what: {name: [] for name in makes} for what in ("optimizer", "update")
    }
    order = random.Random(0)
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order.sample(list(makes), len(makes)):
                optimizer, batch = ready[name]
                watches[name].spent = 0
                before = time.thread_time_ns()
                for _ in range(ACTOR_EVERY):
                    optimizer.update(batch)
                whole = time.thread_time_ns() - before
                found["update"][name].append(whole // ACTOR_EVERY)
                found["optimizer"][name].append(watches[name].spent // ACTOR_EVERY)
    finally:
        gc.enable()
    return found
