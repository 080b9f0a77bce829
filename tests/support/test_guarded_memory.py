"""Guards: a write beside an element is noticed, wherever the element lies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import OURS, normal
from guarded_memory import GuardedMemory
from tensor_strategies import GRADIENT_LAYOUTS, strides_of
from torch import Tensor, nn

SHAPES = [(), (0,), (5,), (3, 4), (2, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", GRADIENT_LAYOUTS)
def test_a_tensor_has_its_values_and_strides(layout: str, shape: tuple[int, ...]) -> None:
    values = normal(shape, 1)
    if layout == "expanded" and values.numel():
        values = values.flatten()[0].expand(shape)
    memory = GuardedMemory()
    strides = strides_of(layout, shape)
    placed = memory.place("it", values, strides, 3)
    assert placed.stride() == strides
    assert torch.equal(placed, values)
    placed.fill_(0) if layout != "expanded" else None
    memory.check()


@pytest.mark.parametrize("offset", [-1, 5, 1])
def test_a_write_beside_an_element_is_noticed(offset: int) -> None:
    memory = GuardedMemory()
    placed = memory.place("it", normal((5,), 1), (1 if offset == 5 else 2,))
    placed.as_strided((1,), (1,), placed.storage_offset() + offset).fill_(1.0)
    with pytest.raises(AssertionError, match="it: written outside of its elements"):
        memory.check()


def _arena_of(tensor: Tensor) -> Any:
    """The number that lies behind the last one of a tensor in an arena."""
    import ctypes

    end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
    return (ctypes.c_uint8 * tensor.element_size()).from_address(end)


SETTINGS = {"master": "split8", "state_dtype": "8bit", "ema_decay": 0.9, "float32_state": "none"}


@pytest.mark.parametrize("name", ["param", "exp_avg_code", "exp_avg_sq_scale", "remainder", "ema"])
def test_a_write_beside_a_tensor_in_an_arena_is_noticed(name: str) -> None:
    memory = GuardedMemory()
    with memory.around_arenas():
        params = [nn.Parameter(normal((size,), 1).bfloat16()) for size in (70, 64)]
        optimizer = OURS["adamw"]([{"params": params, **SETTINGS}], backend="cpu")
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    memory.check()
    written = params[1] if name == "param" else optimizer.state[params[1]][name]
    _arena_of(written)[0] ^= 1
    with pytest.raises(AssertionError, match=r"an arena of .*: written outside of its elements"):
        memory.check()
