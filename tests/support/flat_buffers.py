"""Optimizers with flat gradients, and where these have to lie."""

from __future__ import annotations

from typing import Any

import torch
from backends import chosen
from cases import (
    Options,
    gradient,
    groups_of,
    sizes_for,
)
from checks import all_params
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.memory.arena import padded

ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})


def flat_optimizer(options: Options = ADAM, backend: str = "cpu", **more: Any) -> Any:
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(7), device, mixed=options.mixed)
    return options.ours(groups, **{"backend": instance, "grads": "flat", **more})


def flat_sgd(*params: nn.Parameter, backend: str = "cpu", **more: Any) -> Any:
    return sf.StackelbergSGD(params, lr=1.0, backend=chosen(backend)[0], grads="flat", **more)


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def fill(optimizer: Any, number: int) -> None:
    """New values where gradients are, as autograd leaves them."""
    for k, p in enumerate(all_params(optimizer)):
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        p.grad.copy_(gradient(tuple(p.shape), 7919 * number + k, p.dtype))


def params_of(optimizer: Any, role: str) -> list[nn.Parameter]:
    return [p for g in optimizer.param_groups if g["role"] == role for p in g["params"]]


def buffers_of(optimizer: Any) -> list[Tensor]:
    return [buffer for buffers in optimizer.flat_grads.values() for buffer in buffers]


def assert_attached(optimizer: Any, value: float | None = None) -> None:
    """Gradients are in the buffers, in the order of the groups, and nothing but zeros is between them."""
    for role, buffers in optimizer.flat_grads.items():
        for buffer in buffers:
            assert buffer.is_contiguous()
            assert buffer.dim() == 1
            at, rest, size = 0, buffer.clone(), buffer.element_size()
            for p in params_of(optimizer, role):
                if p.requires_grad and p.numel() and p.dtype is buffer.dtype:
                    off = p.grad.data_ptr() - buffer.data_ptr() - at * size
                    assert off == 0
                    assert value is None or bool((p.grad == value).all())
                    rest[at : at + p.numel()] = 0
                    at += padded(p.numel())
            assert (at, int(rest.count_nonzero())) == (buffer.numel(), 0)
