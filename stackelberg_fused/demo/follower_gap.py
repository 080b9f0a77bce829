"""The follower's gap during the demo: how far the head is from the best one for the body of the moment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..game.best_response import best_response
from ..game.follower_objective import FollowerObjective, linear_head
from .settings import Settings
from .tasks import Task

AT = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the run: each takes as long as ten training steps
ROWS = 512  # predictions of one fixed training batch
RIDGE = 1e-3  # without one, separable features have no best head
TOLERANCE = 1e-3  # nats
HOW = (
    f"Of f, the loss of {ROWS} predictions or fewer, of one training batch, plus {RIDGE / 2:g} |w|². The best head "
    "learns so few by heart, and its |w| is small: the gap is no training loss that could be saved."
)


def follower_gap(task: Task, model: nn.Module, step: int, settings: Settings) -> dict[str, float]:
    """Return {"follower_gap": f - Phi} in nats after some steps, and nothing after the others.

    f is the training loss of one batch, the same for all runs, plus `RIDGE / 2 * |w|^2`; Phi is f at the head that
    minimises it. Nothing is returned where SciPy is missing, the head is no linear layer or the model has diverged.
    """
    if step not in {round(share * settings.steps) for share in AT}:
        return {}
    inputs, targets = task.batch(torch.Generator().manual_seed(settings.seed))
    head = model.get_submodule(task.head)
    try:
        features = _features(model, head, inputs.to(settings.device))[:ROWS]
        classes = targets.to(settings.device).flatten()[:ROWS]
        at_head = FollowerObjective.of(
            "cross_entropy", linear_head(head), features, classes, RIDGE
        ).detached()
        value = float(at_head.value(at_head.matrix(linear_head(head))))
        best = best_response(head, features, classes, "cross_entropy", RIDGE, tolerance=TOLERANCE)
    except (ImportError, TypeError, ValueError, RuntimeError):
        return {}
    return {"follower_gap": value - best.value}


@torch.no_grad()
def _features(model: nn.Module, head: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the head gets from the body, [predictions, inputs of the head]."""
    seen: list[Tensor] = []

    def see(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen.append(given[0])

    handle = head.register_forward_pre_hook(see)
    try:
        model(inputs)
    finally:
        handle.remove()
    return seen[0].flatten(0, -2)
