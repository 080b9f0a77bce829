"""Strategies of tensors: shapes around the sizes at which tiles, vectors and lanes end, and ways to lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from cases import gradient, normal
from guarded_memory import GuardedMemory
from hypothesis import strategies as st
from torch import Tensor

SHAPES = [
    (),
    (0,),
    (1,),
    (3,),
    (17,),
    (64,),
    (4096,),
    (4100,),
    (5, 7),
    (1, 9),
    (0, 4),
    (2, 3, 5),
    (2, 3, 4, 4),
    (33, 130),
]
SMALL_SHAPES = [shape for shape in SHAPES if torch.Size(shape).numel() <= 100]
# how the elements lie in memory; "expanded" ones share a place, which only gradients may
LAYOUTS = ["contiguous", "reversed dimensions", "channels last", "every second", "rows apart"]
GRADIENT_LAYOUTS = [*LAYOUTS, "expanded"]


def strides_of(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a layout, in elements."""
    order = list(range(len(shape)))
    if layout == "reversed dimensions":
        order.reverse()
    elif layout == "channels last" and len(shape) > 2:
        order = [0, *order[2:], 1]
    step = 2 if layout == "every second" else 1
    strides = [0] * len(shape)
    for position, dimension in enumerate(reversed(order)):
        strides[dimension] = step
        step *= max(1, shape[dimension])
        if layout == "rows apart" and position == 0:
            step += 3
    return (0,) * len(shape) if layout == "expanded" else tuple(strides)


@dataclass(frozen=True)
class ParameterSpec:
    """A parameter to be made: more than once, with the same values."""

    shape: tuple[int, ...]
    layout: str
    shift: int
    dtype: torch.dtype
    frozen: bool

    def make(self, memory: GuardedMemory, seed: int) -> torch.nn.Parameter:
        """In guarded memory, unless it is to fill its storage, without which an optimizer does not move it."""
        values, strides = (
            normal(self.shape, seed).to(self.dtype),
            strides_of(self.layout, self.shape),
        )
        if self.shift < 0:
            data = torch.empty_strided(self.shape, strides, dtype=self.dtype).copy_(values)
        else:
            data = memory.place(f"parameter {seed}", values, strides, self.shift)
        return torch.nn.Parameter(data, requires_grad=not self.frozen)


@dataclass(frozen=True)
class GradientSpec:
    """Where the gradient of a parameter lies."""

    layout: str
    shift: int

    def make(self, memory: GuardedMemory, param: Tensor, seed: int) -> Tensor:
        shape = tuple(param.shape)
        values = gradient(shape, seed, param.dtype)
        if self.layout == "expanded" and values.numel():
            values = values.flatten()[0].expand(shape)
        return memory.place(f"gradient {seed}", values, strides_of(self.layout, shape), self.shift)


def copy_in_layout(tensor: Tensor) -> Tensor:
    """A copy with the strides of a tensor: torch's own kernels round by them, to a zero of another sign."""
    if tensor.numel() and not any(tensor.stride()):
        return tensor.detach().flatten()[0].clone().expand(tensor.shape)
    like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return like.copy_(tensor.detach())


def parameters(dtypes: list[torch.dtype], shapes: list[tuple[int, ...]]) -> Any:
    """Specifications of parameters; -1 as shift fills a storage."""
    return st.builds(
        ParameterSpec,
        shape=st.sampled_from(shapes),
        layout=st.sampled_from(LAYOUTS),
        shift=st.integers(-1, 3),
        dtype=st.sampled_from(dtypes),
        frozen=st.booleans(),
    )


GRADIENTS = st.builds(
    GradientSpec, layout=st.sampled_from(GRADIENT_LAYOUTS), shift=st.integers(0, 3)
)
