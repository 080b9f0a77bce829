"""One short training run of a search for rates: train a model from a seed, return its final loss."""

from __future__ import annotations

import copy
import math
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Schedule = Callable[[torch.optim.Optimizer], Any]  # makes what has a step(), as torch's schedulers
Evaluate = Callable[[nn.Module], Any]  # returns one number


def new_modules(model: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a callable that gives each run a module of its own: a copy of `model`, or what `model()` returns.

    The callable raises ValueError if `model()` returns the module that it returned before.
    """
    if isinstance(model, nn.Module):
        return lambda: copy.deepcopy(model)
    last: Callable[[], nn.Module | None] = lambda: None  # noqa: E731

    def new_module() -> nn.Module:
        nonlocal last
        module = model()
        if module is last():
            raise ValueError(
                "model() returned the same module twice: each run would go on where the last one ended. "
                "Make a new one in it, or pass the module itself, which is copied"
            )
        last = weakref.ref(module)
        return module

    return new_module


def short_run_loss(
    new_module: Callable[[], nn.Module],
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    groups: Callable[[nn.Module], list[dict[str, Any]]],
    optimizer: Callable[..., torch.optim.Optimizer],
    options: dict[str, Any],
    steps: int,
    seed: int,
    advance: Callable[[], Any] = lambda: None,
    schedule: Schedule | None = None,
    evaluate: Evaluate | None = None,
) -> float:
    """Return the mean loss over the last quarter of a run, or what `evaluate` says; infinity if the run diverged.

    Args:
        new_module: of `new_modules`.
        batches: the run cycles through them in an order that the seed sets.
        loss_fn: `loss = loss_fn(model, batch)`, a tensor of one element.
        groups: makes param groups of the run's model.
        optimizer, options: the run uses `optimizer(groups(model), **options)`.
        steps: the number of steps, >= 1.
        seed: of torch, NumPy and Python. The random states are restored after the run.
        advance: called after each step.
        schedule: `schedule(optimizer)` makes a scheduler, whose `step()` is called after each step.
        evaluate: `evaluate(model)` is the loss of the trained model, which is in evaluation mode then; it is called
            without gradients.
    """
    with seeded(seed):
        trained = new_module()
        run_optimizer = optimizer(groups(trained), **options)
        scheduler = None if schedule is None else schedule(run_optimizer)

        def stepped() -> None:
            if scheduler is not None:
                scheduler.step()
            advance()

        shuffle = random.Random(seed)
        loss = _train(trained, run_optimizer, batches, loss_fn, steps, shuffle, stepped)
        if evaluate is None or math.isinf(loss):
            return loss
        return _evaluated(trained, evaluate)


@torch.no_grad()
def _evaluated(model: nn.Module, evaluate: Evaluate) -> float:
    found = evaluate(model.eval())
    if isinstance(found, Tensor) and found.numel() != 1:
        raise ValueError(f"evaluate must return one number, got {found!r:.80}")
    try:
        loss = float(found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"evaluate must return one number, got {found!r:.80}") from error
    return loss if math.isfinite(loss) else math.inf


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and Python, and restore their random states afterwards."""
    random_states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - the user's code may draw from this state
            yield
    finally:
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])  # noqa: NPY002


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    steps: int,
    shuffle: random.Random,
    advance: Callable[[], Any],
) -> float:
    order, last_losses = list(range(len(batches))), []
    take_step: Any = optimizer.step  # torch annotates closures that return floats
    for step in range(steps):
        if step % len(order) == 0:
            shuffle.shuffle(order)
        batch = batches[order[step % len(order)]]

        def closure(batch: Any = batch) -> Tensor:
            loss = loss_fn(model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                raise ValueError(f"loss_fn must return a tensor of one element, got {loss!r:.80}")
            loss.backward()
            return loss.detach()

        loss = float(take_step(closure))
        optimizer.zero_grad()
        advance()
        if not math.isfinite(loss):
            return math.inf
        if step >= steps - max(1, steps // 4):
            last_losses.append(loss)
    return sum(last_losses) / len(last_losses)


def head_by_name(model: Any, head: Any) -> Any:
    """Replace each module of a head specification by its name, which is valid in copies of the model too."""
    if not isinstance(model, nn.Module):
        return head
    if isinstance(head, nn.Module):
        return next((name for name, module in model.named_modules() if module is head), head)
    return [head_by_name(model, part) for part in head] if isinstance(head, (list, tuple)) else head
