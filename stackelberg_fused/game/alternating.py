"""One alternating step: the head (follower) moves first, then the body (leader) by its gradient at the new head."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..groups.option_types import Role
from ..groups.rules import as_integer, is_integer
from ..layout.statistics import LastStep
from ..optimizers.base import StackelbergOptimizer
from ..optimizers.player import Player
from .best_response import BestResponse, best_response
from .follower_objective import check_ridge, linear_head, loss_name
from .microbatches import split_both
from .player_gradients import (
    LossFunction,
    Microbatch,
    body_forward,
    body_gradient,
    head_gradient,
    with_last,
)
from .players import (
    body_gradients,
    check_players,
    known_to_use_features,
    note_use_of_features,
    refuse_head_in_graph,
    refuse_shared_parameters,
)


@dataclass(frozen=True)
class AlternatingStep:
    """The losses and update reports of one alternating step. Tensors stay on their device until they are read.

    Attributes:
        loss: [], f(theta_k, w_{k+1}): the loss at the new head, before the body moved.
        head_losses: [head_steps], the loss before each head update; [0] for an exact head.
        head, body: `last_step` after each update; with a scaler `skipped` says whether there was one.
        response: the best response that an exact head was set to; None otherwise.
    """

    loss: Tensor
    head_losses: Tensor
    head: tuple[LastStep, ...]
    body: LastStep
    response: BestResponse | None = None


def alternating_step(
    body: Callable[[Any], Any],
    head: Callable[[Any], Any],
    loss_fn: LossFunction,
    optimizer: StackelbergOptimizer,
    inputs: Any,
    targets: Any,
    head_steps: int | Literal["exact"] = 1,
    *,
    scaler: torch.amp.GradScaler | None = None,
    zero_grad: bool = True,
    microbatches: int = 1,
    ridge: float = 0.0,
) -> AlternatingStep:
    """Update the head `head_steps` times at fixed features, then the body once by its gradient at the new head.

    With plain gradient descent this is (docs/algorithm.md; inferred from arXiv 2605.15530):

        w     <- Proj_W    [w     - beta  * grad_w     f(theta, w)]    `head_steps` times
        theta <- Proj_Theta[theta - alpha * grad_theta f(theta, w)]    once, at the new w

    The step runs one forward and one backward pass of the body and `head_steps + 1` forward and backward passes of
    the head. The last backward pass of the head computes the gradient of the features only.

    Args:
        body: `features = body(inputs)`: a module or any callable. The features are a tensor, or tensors in nested
            tuples, lists and dicts.
        head: `outputs = head(features)`.
        loss_fn: `loss = loss_fn(outputs, targets)`, a tensor of one element. It may depend on the body only through
            the features.
        optimizer: a Stackelberg optimizer with param groups of both roles. The parameters of `body` have to be in
            groups of role "body", those of `head` in groups of role "head".
        inputs, targets: a tensor, or tensors in nested tuples, lists and dicts.
        head_steps: the number of head updates, >= 1, or "exact": set the head to its best response to the features of
            this batch, without the optimizer (variable projection, Golub & Pereyra 1973). "exact" needs a head that is
            an `nn.Linear` and a `loss_fn` that `best_response` knows.
        scaler: a `torch.amp.GradScaler`. It unscales, checks and skips each player separately. The step calls
            `scaler.update()` once.
        zero_grad: clear the gradients of both players before and after the step. If False, gradients that exist
            already are added to those of the first head update and of the body update, and the last gradients stay.
            The head's gradients are cleared between its updates either way.
        microbatches: the number of parts into which inputs and targets are split along their first dimension, for a
            loss that is a mean over rows. The passes of the head process one part at a time. The graphs of the body
            stay alive for all parts, because its gradient has to wait for the new head. So this saves the memory of
            logits, not that of the body's activations.
        ridge: the ridge of the exact head, as in `best_response`. The returned losses do not include the ridge term.

    Returns:
        The losses, and `last_step` of each update.

    Raises:
        ValueError, TypeError, RuntimeError: an argument does not fit, a parameter is in a group of the other role, the
            features need no gradient, or DistributedDataParallel wraps a larger module that contains `body` or `head`,
            so that its gradients would not be reduced. No parameter was modified.
        RuntimeError: the loss does not depend on the features, or the head uses a reentrant checkpoint. This is found
            out before the head moves, in the first step with this head and `loss_fn`, which computes the gradient of
            the features once more for it. A graph that loses the features later, or at the new head, is noticed after
            the head has moved.

    Example:
        >>> body, head = nn.Sequential(nn.Linear(4, 8), nn.Tanh()), nn.Linear(8, 1)
        >>> groups = sf.split_body_head(nn.Sequential(body, head), head=head)
        >>> opt = sf.StackelbergSGD(groups, lr=0.01)
        >>> inputs, targets = torch.randn(16, 4), torch.randn(16, 1)
        >>> loss_fn = nn.functional.mse_loss
        >>> done = sf.alternating_step(body, head, loss_fn, opt, inputs, targets, head_steps=2)
        >>> bool(done.loss < done.head_losses[0])  # at the new head, and before it moved
        True
    """
    check_players(optimizer, body, head)
    optimizer = _stepping_roles(optimizer)
    exact = isinstance(head_steps, str)
    microbatches = _count("microbatches", microbatches)
    if exact:
        _check_exact(optimizer, head, loss_fn, head_steps, ridge)
    else:
        head_steps = _count("head_steps", head_steps)
        if ridge:
            raise ValueError("ridge goes with head_steps='exact' only")
    rows = split_both(inputs, targets, microbatches)
    with torch.enable_grad():
        parts = [
            Microbatch(body_forward(body, x, last), y, share)
            for last, (x, y, share) in with_last(rows)
        ]
        if not any(part.needs_gradient for part in parts):
            raise ValueError(
                "the body's output needs no gradient: is the body frozen, or does it run under no_grad()?"
            )
        refuse_head_in_graph(optimizer, body, [part.features for part in parts])
        if zero_grad:
            optimizer.zero_grad()
        losses, head_reports, response = [], [], None
        with _PlayerSteps(optimizer, scaler) as player_steps:
            if exact:
                response = _set_best_response(head, loss_fn, parts, ridge)
            for index in range(0 if isinstance(head_steps, str) else head_steps):
                if index and not zero_grad:
                    optimizer.zero_grad(role="head")
                before = body_gradients(optimizer) if index == 0 else None
                is_new = index == 0 and not known_to_use_features(optimizer, head, loss_fn)
                with optimizer.accumulate():  # it may be one of several backward passes
                    losses.append(head_gradient(head, loss_fn, parts, scaler, is_new))
                if before is not None:
                    refuse_shared_parameters(optimizer, before)
                if is_new:
                    note_use_of_features(optimizer, head, loss_fn)
                head_reports.append(player_steps.step("head", zero_grad))
            with optimizer._releasing("body"):
                loss = body_gradient(head, loss_fn, parts, scaler)
            body_report = player_steps.step("body", zero_grad)
    head_losses = torch.stack(losses) if losses else loss.new_empty(0)
    return AlternatingStep(loss, head_losses, tuple(head_reports), body_report, response)


def _stepping_roles(optimizer: StackelbergOptimizer) -> StackelbergOptimizer:
    """Return the optimizer itself in place of a wrapper that cannot step one role, as Fabric's."""
    bare = optimizer.unwrapped()
    if bare is optimizer:
        return optimizer
    parameters = inspect.signature(type(optimizer).step).parameters.values()
    takes_role = any(p.name == "role" or p.kind is p.VAR_KEYWORD for p in parameters)
    return optimizer if takes_role else bare


def _count(name: str, value: Any) -> int:
    """Return a number of steps or parts, >= 1, as Python's integer."""
    if not is_integer(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    count = as_integer(value)
    if count < 1:
        raise ValueError(f"{name} must be >= 1, got {count}")
    return count


def _check_exact(optimizer: Any, head: Any, loss_fn: Any, head_steps: Any, ridge: float) -> None:
    if head_steps != "exact":
        raise ValueError(f"head_steps must be an int or 'exact', got {head_steps!r}")
    linear = linear_head(head)
    if not all(p.requires_grad for p in linear.parameters()):
        raise ValueError("head_steps='exact': a parameter of the head is frozen")
    for group in optimizer.param_groups:
        for name in ("constraint", "ema_decay"):
            if group["role"] == "head" and group[name] is not None:
                raise ValueError(
                    f"head_steps='exact' does not go with {name} on the head, which the optimizer does not step then"
                )
    name = loss_name(loss_fn)
    check_ridge(ridge, "the best response of cross entropy" if name != "mse" else "")
    if isinstance(head, DistributedDataParallel):
        raise RuntimeError(
            "head_steps='exact' does not go with DistributedDataParallel: each process would respond to its own rows"
        )


def _set_best_response(
    head: Any, loss_fn: Any, parts: list[Microbatch], ridge: float
) -> BestResponse:
    """Set the head to its best response to the features of all microbatches."""
    features = [part.features for part in parts]
    if not all(isinstance(f, Tensor) for f in features):
        raise TypeError("head_steps='exact' needs a body that returns one tensor")
    targets = torch.cat([part.targets for part in parts])
    response = best_response(head, torch.cat(features), targets, loss_fn, ridge)
    response.assign(head)
    torch.clear_autocast_cache()
    return response


class _PlayerSteps:
    """The optimizer steps of both players, with or without a gradient scaler."""

    def __init__(self, optimizer: StackelbergOptimizer, scaler: Any) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        # until its update the scaler identifies players by id(), so they stay alive here
        self._players: list[Player] = []

    def step(self, role: Role, zero_grad: bool) -> LastStep:
        if self._scaler is None:
            self._optimizer.step(role=role, zero_grad=zero_grad)
            report = self._optimizer.last_step
        else:
            report = self._scaled_step(role, zero_grad)
        # inside one autocast region torch would go on using the cast of the old weights
        torch.clear_autocast_cache()
        return report

    def _scaled_step(self, role: Role, zero_grad: bool) -> LastStep:
        # a new Player for every step: a scaler refuses to step one optimizer twice before its update
        player = Player(self._optimizer, role)
        player.stepper = self._optimizer
        self._players.append(player)
        self._scaler.step(player, zero_grad=zero_grad)
        if not player.was_stepped:  # the scaler skipped it, and with it the clearing of gradients
            if zero_grad:
                self._optimizer.zero_grad(role=role)
            return LastStep(0, skipped=torch.tensor(True))
        report = self._optimizer.last_step
        return (
            report if report.skipped is not None else replace(report, skipped=torch.tensor(False))
        )

    def __enter__(self) -> _PlayerSteps:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._scaler is None:
            return
        if kind is None:
            self._scaler.update()
            return
        # a later object with the same id() would count as stepped until the scaler's next update
        states = getattr(self._scaler, "_per_optimizer_states", {})
        for player in self._players:
            states.pop(id(player), None)
