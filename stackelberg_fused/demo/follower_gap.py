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
ROWS = (
    512  # predictions of one fixed training batch, where the whole training set would take too long
)
RIDGE = 1e-3  # without one, separable features have no best head
TOLERANCE = 1e-3  # nats


def how(task: Task) -> str:
    """Return what the page says of the gap."""
    norm = f"{RIDGE / 2:g} |w|²"
    if task.training:
        return f"Of f, the loss of the training set plus {norm}."
    return (
        f"Of f, the loss of at most {ROWS} predictions of one training batch plus {norm}. The best head learns so few "
        "by heart, and its |w| is small: the gap is no loss that training could save."
    )


def follower_gap(task: Task, model: nn.Module, step: int, settings: Settings) -> dict[str, float]:
    """Return {"follower_gap": f - Phi} in nats after some steps, and nothing after the others.

    f is the loss of the training set, or of a part of one batch, the same for all runs, plus `RIDGE / 2 * |w|^2`; Phi
    is f at the head that minimises it. Nothing is returned where SciPy is missing, the head is no linear layer or the
    model has diverged.
    """
    if step not in {round(share * settings.steps) for share in AT}:
        return {}
    if task.training:
        (inputs, targets), rows = task.training[0], None
    else:
        inputs, targets = task.batch(torch.Generator().manual_seed(settings.seed))
        rows = ROWS
    head = model.get_submodule(task.head)
    try:
        features = _features(model, head, inputs.to(settings.device))[:rows]
        classes = targets.to(settings.device).flatten()[:rows]
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
