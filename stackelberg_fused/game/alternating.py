"""One alternating step: the follower first, then the leader by its gradient at the new follower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..groups.option_types import Role
from ..layout.statistics import LastStep
from ..optimizers.base import StackelbergOptimizer
from ..optimizers.player import Player
from .best_response import BestResponse, best_response
from .microbatches import split_both
from .objective import check_ridge, linear_head, loss_name
from .passes import (
    LossFunction,
    Part,
    body_gradient,
    forward,
    gradients_of_body,
    head_gradient,
    refuse_head_in_graph,
    refuse_shared,
    with_last,
)
from .players import check_players


@dataclass(frozen=True)
class AlternatingStep:
    """What an alternating step did; tensors stay on their device until somebody reads them.

    Attributes:
        loss: [], f(theta_k, w_{k+1}): at the new head, before the body moved.
        head_losses: [head_steps], each before the head update that it led to; [0] for an exact head.
        head, body: `last_step` of each update.
        response: the best response that an exact head took; else None.
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
    """Move the head `head_steps` times on fixed features, then the body by its gradient at the new head.

    One forward and one backward pass of the body, `head_steps + 1` forward and backward passes of the head; of the
    last one only what leads to the features. The update is that of docs/algorithm.md, inferred from arXiv 2605.15530.

    Args:
        body: `features = body(inputs)`: a module, or any callable; features are a tensor, or tensors in any nest of
            tuples, lists and dicts.
        head: `outputs = head(features)`.
        loss_fn: `loss = loss_fn(outputs, targets)`, one element. It may depend on the body through the features alone.
        optimizer: a Stackelberg optimizer with groups of both roles; parameters of `body` have to be in groups of role
            "body", those of `head` in groups of role "head".
        inputs, targets: a tensor, or tensors in any nest of tuples, lists and dicts.
        head_steps: updates of the head, >= 1; or "exact": the head takes its best response to the features of this
            batch, without the optimizer (variable projection, Golub & Pereyra 1973). Then the head has to be an
            `nn.Linear`, and `loss_fn` one that `best_response` knows.
        scaler: a `torch.amp.GradScaler`: each player is unscaled, checked and skipped on its own, and
            `scaler.update()` is called once, here.
        zero_grad: clear the gradients of both players before and after. Otherwise those that are there count into the
            first head update and into the body's, and the last ones stay; the head's are cleared between its updates.
        microbatches: cut inputs and targets along their first dimension into so many parts, for a loss that is a mean
            over rows. The head's passes take one part at a time. The body's graphs are kept for all of them, since
            its gradient has to wait for the new head: so this saves the memory of logits, not that of the body.
        ridge: of the exact head, as in `best_response`; the losses that are returned are without its part.

    Returns:
        Losses and what each update did.

    Raises:
        ValueError, TypeError, RuntimeError: an argument does not fit, a parameter is not of its player, the features
            need no gradient, or a module is a bare part of one that DistributedDataParallel wraps as a whole, so that
            its gradients would not be reduced. No parameter was modified.
    """
    check_players(optimizer, body, head)
    exact = isinstance(head_steps, str)
    _check_int("microbatches", microbatches)
    if exact:
        _check_exact(optimizer, head, loss_fn, head_steps, ridge)
    else:
        _check_int("head_steps", head_steps)
        if ridge:
            raise ValueError("ridge goes with head_steps='exact' only")
    cut = split_both(inputs, targets, microbatches)
    with torch.enable_grad():
        parts = [Part(forward(body, x, last), y, share) for last, (x, y, share) in with_last(cut)]
        if not any(part.needs_gradient for part in parts):
            raise ValueError(
                "the body's output needs no gradient: is the body frozen, or does it run under no_grad()?"
            )
        refuse_head_in_graph(optimizer, body, parts)
        if zero_grad:
            optimizer.zero_grad()
        losses, head_did, response = [], [], None
        with _Players(optimizer, scaler) as players:
            if exact:
                response = _respond(head, loss_fn, parts, ridge)
            for number in range(0 if isinstance(head_steps, str) else head_steps):
                if number and not zero_grad:
                    optimizer.zero_grad(role="head")
                untouched = gradients_of_body(optimizer) if number == 0 else None
                losses.append(head_gradient(head, loss_fn, parts, scaler))
                if untouched is not None:
                    refuse_shared(optimizer, untouched)
                head_did.append(players.step("head", zero_grad))
            loss = body_gradient(head, loss_fn, parts, scaler)
            body_did = players.step("body", zero_grad)
    head_losses = torch.stack(losses) if losses else loss.new_empty(0)
    return AlternatingStep(loss, head_losses, tuple(head_did), body_did, response)


def _check_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, got {value}")


def _check_exact(optimizer: Any, head: Any, loss_fn: Any, how: Any, ridge: float) -> None:
    if how != "exact":
        raise ValueError(f"head_steps must be an int or 'exact', got {how!r}")
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


def _respond(head: Any, loss_fn: Any, parts: list[Part], ridge: float) -> BestResponse:
    """Give the head its best response to all of the parts."""
    features = [part.features for part in parts]
    if not all(isinstance(f, Tensor) for f in features):
        raise TypeError("head_steps='exact' needs a body that returns one tensor")
    targets = torch.cat([part.targets for part in parts])
    response = best_response(head, torch.cat(features), targets, loss_fn, ridge)
    response.assign(head)
    torch.clear_autocast_cache()
    return response


class _Players:
    """The updates of both players, with or without a scaler."""

    def __init__(self, optimizer: StackelbergOptimizer, scaler: Any) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._stepped: list[Player] = []  # a scaler goes by their identity until its update

    def step(self, role: Role, zero_grad: bool) -> LastStep:
        if self._scaler is None:
            self._optimizer.step(role=role, zero_grad=zero_grad)
        else:
            # one of its own for every update: scalers refuse to step an optimizer twice before their update
            player = Player(self._optimizer, role)
            self._stepped.append(player)
            self._scaler.step(player, zero_grad=zero_grad)
        # inside one autocast region torch would go on with the head's weights as it cast them before
        torch.clear_autocast_cache()
        return self._optimizer.last_step

    def __enter__(self) -> _Players:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._scaler is None:
            return
        if kind is None:
            self._scaler.update()
            return
        # until its next update a scaler would take another object at the same address for one that was stepped
        known = getattr(self._scaler, "_per_optimizer_states", {})
        for player in self._stepped:
            known.pop(id(player), None)
