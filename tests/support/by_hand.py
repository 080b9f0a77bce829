"""Optimizers whose groups take turns, and beside them one without turns that is stepped by hand accordingly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from backends import chosen
from cases import (
    Options,
    groups_of,
    set_gradients,
    sizes_for,
)
from checks import assert_same_optimizers
from torch import Tensor

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})
MOMENTUM = Options("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5})
EVERY = (2, 1, 3)  # groups take turns between these
LAYOUTS = ["reference", "cpu", "cuda-on-host"]
by_mode = pytest.mark.parametrize("mode", ["latest", "mean"])


def optimizer_with_turns(options: Options, backend: str, mode: str, **more: Any) -> Any:
    instance, device = chosen(backend)
    every, capturable = more.pop("every", EVERY), more.pop("capturable", False)
    # a mixed launch with every rule
    groups = groups_of(sizes_for(13 if options.mixed else 3), device, mixed=options.mixed)
    for index, group in enumerate(groups):
        group.update(update_every=every[index % len(every)], update_every_grads=mode)
        group["capturable"] = capturable
    return options.ours(groups, backend=instance, **more)


class ByHand:
    """An optimizer without turns: whoever steps it holds gradients back, or sums them up, until it is their turn."""

    def __init__(self, options: Options, backend: str, mode: str, **more: Any) -> None:
        self.optimizer = optimizer_with_turns(options, backend, mode, every=(1,), **more)
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state
        self.begin(mode, EVERY)

    def begin(self, mode: str, every: tuple[int, ...]) -> None:
        self._mode = mode
        self._every = [every[i % len(every)] for i in range(len(self.param_groups))]
        self._waited = [0] * len(self._every)
        self._sums: dict[Tensor, Tensor] = {}

    def step(self, role: str | None = None) -> None:
        span = [i for i, group in enumerate(self.param_groups) if role in (None, group["role"])]
        if all(p.grad is None for i in span for p in self.param_groups[i]["params"]):
            return
        for i in span:
            self._waited[i] = (self._waited[i] + 1) % self._every[i]
            for p in self.param_groups[i]["params"]:
                if self._mode == "mean" and self._every[i] > 1:
                    self._sum_up(p, self._every[i], is_turn=not self._waited[i])
                if self._waited[i]:
                    p.grad = None
        self.optimizer.step(role=role)

    def _sum_up(self, p: Tensor, every: int, is_turn: bool) -> None:
        if p.grad is not None:
            self._sums[p] = self._sums.get(p, torch.zeros_like(p.grad)) + p.grad
        if is_turn:
            p.grad = self._sums.pop(p) * (1 / every) if p in self._sums else None


def pair(options: Options, backend: str, mode: str, **more: Any) -> tuple[Any, ByHand]:
    return optimizer_with_turns(options, backend, mode, **more), ByHand(
        options, backend, mode, **more
    )


def assert_same_as_by_hand(ours: Any, by_hand: ByHand) -> None:
    """In what an optimizer without turns has too, as soon as there was a first turn."""
    sides = [
        SimpleNamespace(
            param_groups=side.param_groups,
            state={
                p: {k: v for k, v in entry.items() if k not in ("grad_sum", "waited")}
                for p, entry in side.state.items()
                if float(entry.get("step", 0))
            },
        )
        for side in (ours, by_hand)
    ]
    assert_same_optimizers(*sides)


def train(*sides: Any, steps: range = range(7), **how: Any) -> None:
    """The same gradients to all; in two of three steps, others have none."""
    for number in steps:
        for side in sides:
            set_gradients(side.param_groups, number, (0, 3, 2)[number % 3])
            side.step(**how)
