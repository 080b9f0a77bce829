"""Tensors that have no memory of their own: meta and fake tensors, wrappers, and those whose storage was taken away."""

from __future__ import annotations

import sys

import torch
from torch import Tensor


def _is_fake(tensor: Tensor) -> bool:
    # no import here: none exists before another module has imported it
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def is_wrapper(tensor: Tensor) -> bool:
    """Tell whether a tensor's operations go through a `__torch_dispatch__` of its class, as those of wrappers do."""
    # torch gives every class without one this function
    return type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def has_memory(tensor: Tensor) -> bool:
    """Tell whether all elements of a tensor lie in memory that its address leads to; true where there are no elements.

    Not so: meta and fake tensors, wrappers around other tensors, tensors whose storage was resized (`resize_(0)`), and
    sparse ones.
    """
    if tensor.layout is not torch.strided or tensor.device.type == "meta" or _is_fake(tensor):
        return False
    if not tensor.numel():
        return True
    if not tensor.data_ptr():
        return False
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.untyped_storage().nbytes() >= end
