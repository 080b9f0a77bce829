"""The follower's gap during the demo: how far the head is from the best one for the body of the moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..game.best_response import best_response
from ..game.follower_objective import FollowerObjective, linear_head
from ..report.scale import text
from .settings import Settings
from .tasks import Task


@dataclass(frozen=True)
class Measure:
    """How the gap is measured.

    Attributes:
        at: the shares of the run after which it is.
        ridge: of f; without one, separable features have no best head.
        tolerance: bound on what is missing in Phi, in nats.
        rows: predictions of one fixed training batch; None: of the whole training set.
    """

    at: tuple[float, ...]
    ridge: float
    tolerance: float
    rows: int | None


WHOLE = Measure((0.1, 0.25, 0.5, 0.75, 1.0), ridge=1e-5, tolerance=1e-3, rows=None)
# one takes as long as thirty training steps of the language task
PART = Measure((0.25, 0.5, 1.0), ridge=1e-4, tolerance=0.05, rows=512)


def measure(task: Task) -> Measure:
    """The whole training set if it is small, else a part of one batch."""
    return WHOLE if task.training else PART


def how(task: Task) -> str:
    """Return what the page says of the gap."""
    chosen = measure(task)
    norm = f"{text(chosen.ridge / 2)} |w|²"
    if chosen.rows is None:
        return f"Of f, the loss of the training set plus {norm}."
    return (
        f"Of f, the loss of at most {chosen.rows} predictions of one training batch plus {norm}. The best head learns "
        "so few by heart: the gap is no loss that training could save."
    )


def follower_gap(task: Task, model: nn.Module, step: int, settings: Settings) -> dict[str, float]:
    """Return {"follower_gap": f - Phi} in nats after some steps, and nothing after the others.

    f is the loss of the training set, or of a part of one batch, the same for all runs, plus `ridge / 2 * |w|^2`; Phi
    is f at the head that minimises it. Nothing is returned where SciPy is missing, the head is no linear layer or the
    model has diverged.
    """
    chosen = measure(task)
    if step not in {round(share * settings.steps) for share in chosen.at}:
        return {}
    if task.training:
        inputs, targets = task.training[0]
    else:
        inputs, targets = task.batch(torch.Generator().manual_seed(settings.seed))
    head = model.get_submodule(task.head)
    try:
        features = _features(model, head, inputs.to(settings.device))[: chosen.rows]
        classes = targets.to(settings.device).flatten()[: chosen.rows]
        at_head = FollowerObjective.of(
            "cross_entropy", linear_head(head), features, classes, chosen.ridge
        ).detached()
        value = float(at_head.value(at_head.matrix(linear_head(head))))
        best = best_response(
            head,
            features,
            classes,
            "cross_entropy",
            chosen.ridge,
            tolerance=chosen.tolerance,
        )
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
