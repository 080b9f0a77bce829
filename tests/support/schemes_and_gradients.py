"""Every way to store a weight and its state, and every dtype that its gradient may have."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stackelberg_fused.groups.schemes import MASTERS

GRADS = (torch.float32, torch.bfloat16, torch.float16)
STATES = ("float32", "bfloat16", "8bit")
# dtype and master
WEIGHTS: list[tuple[torch.dtype, str | None]] = [(torch.float32, None)]
WEIGHTS += [(dtype, master) for master, dtypes in MASTERS.items() for dtype in dtypes]


def parameter(start: Tensor, grad: torch.dtype) -> nn.Parameter:
    """Return a parameter that takes gradients of a dtype, or skip where this torch has no such one."""
    p = nn.Parameter(start)
    if grad != start.dtype:
        if not hasattr(Tensor, "grad_dtype"):
            pytest.skip("in this torch a gradient has the dtype of its parameter")
        p.grad_dtype = None
    return p
