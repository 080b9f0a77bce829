"""Backward passes that give chosen gradients, and pairs of optimizers of which one releases them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from cases import groups_of, set_gradients
from checks import all_params
from torch import Tensor

import stackelberg_fused as sf

# of parameters in two groups, of which some make a batch of their own
SIZES = [[3000, 17, 3000], [2500, 5]]


def backward(params: list[Tensor], gradients: list[Tensor | None]) -> None:
    """One backward pass that gives each parameter its gradient to the bit; None: it has no part in it."""
    taking_part = [(p, g) for p, g in zip(params, gradients, strict=True) if g is not None]
    if taking_part:
        torch.autograd.backward([p for p, _ in taking_part], [g for _, g in taking_part])


def gradients_of(groups: list[dict[str, Any]], number: int, skip_every: int = 0) -> list[Any]:
    """The gradients that `set_gradients` would set; nothing is set."""
    params = [p for group in groups for p in group["params"]]
    set_gradients(groups, number, skip_every)
    found = [p.grad for p in params]
    for p in params:
        p.grad = None
    return found


def pair_of(make: Callable[..., Any], groups: list[dict[str, Any]], **more: Any) -> tuple[Any, Any]:
    """An optimizer that releases gradients, and one over copies of the parameters that does not."""
    copies = [{**g, "params": copy.deepcopy(g["params"])} for g in groups]
    return make(groups, release="backward", **more), make(copies, **more)


def small_pair(**more: Any) -> tuple[Any, Any]:
    """`pair_of` AdamW over parameters of SIZES."""
    return pair_of(sf.StackelbergAdamW, groups_of(SIZES), **more)


def ordinary_step(optimizer: Any, gradients: list[Tensor | None]) -> None:
    """A backward pass that gives these gradients, the step and the clearing."""
    backward(all_params(optimizer), gradients)
    optimizer.step()
    optimizer.zero_grad()


def take_steps(releasing: Any, ordinary: Any, numbers: range, skip_every: int = 0) -> None:
    """Steps of both by equal gradients, which backward passes compute; each fourth step skips some."""
    for number in numbers:
        skip = skip_every if number % 2 else 0
        gradients = gradients_of(ordinary.param_groups, number, skip)
        for optimizer in (releasing, ordinary):
            ordinary_step(optimizer, gradients)
