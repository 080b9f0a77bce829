"""A tensor subclass without memory of its own, as quantised training has: a plain tensor is inside, times a scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


class Scaled(Tensor):
    """Stands for `inner * SCALE`; the scale is a power of two, so that nothing is rounded."""

    SCALE = 0.25
    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Scaled:
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def plain(value: Any) -> Any:
            return value.inner * cls.SCALE if isinstance(value, cls) else value

        first = args[0] if args else None
        if func is torch.ops.aten.detach.default and isinstance(first, cls):
            return cls(first.inner)
        out = func(*tree_map(plain, args), **tree_map(plain, kwargs or {}))
        if func._schema.name.endswith("_") and isinstance(first, cls):
            first.inner.copy_(out / cls.SCALE)
            return first
        return out


def wrapped(value: Tensor, requires_grad: bool = True) -> nn.Parameter:
    """A parameter with the given values."""
    return nn.Parameter(Scaled(value / Scaled.SCALE), requires_grad=requires_grad)


def unwrapped(param: Tensor) -> Tensor:
    return param.inner * Scaled.SCALE if isinstance(param, Scaled) else param.detach()
