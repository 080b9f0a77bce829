"""Whether a tensor's elements lie in memory that its address leads to."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter


def is_abstract(tensor: Tensor) -> bool:
    """Tell whether a tensor is of a kind without memory of its own: meta, fake, sparse or nested, a wrapper, or a lazy
    module's.

    Wrappers are of a class with a `__torch_dispatch__`: its operations find the elements, wherever these are.
    """
    if is_uninitialized(tensor) or tensor.layout is not torch.strided or tensor.is_nested:
        return True
    if tensor.device.type == "meta" or is_fake(tensor):
        return True
    # torch gives every class without one its own
    own = getattr(Tensor, "__torch_dispatch__", None)
    is_plain = getattr(type(tensor), "__torch_dispatch__", None) is own
    return not is_plain and tensor.numel() > 0 and not tensor.data_ptr()


def is_uninitialized(tensor: Tensor) -> bool:
    """Tell whether a tensor is a parameter of a lazy module before its first forward, without even a shape."""
    return isinstance(tensor, (UninitializedParameter, UninitializedBuffer))


def is_fake(tensor: Tensor) -> bool:
    """Tell whether a tensor is a FakeTensor, which must not even be asked for its address."""
    # no import here: none exists before another module has imported it
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def has_memory(tensor: Tensor) -> bool:
    """Tell whether all elements of a tensor lie in its memory; not so where its storage was resized (`resize_(0)`)."""
    if is_abstract(tensor):
        return False
    if not tensor.numel():
        return True
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    end = (tensor.storage_offset() + last + 1) * tensor.element_size()
    return tensor.data_ptr() != 0 and tensor.untyped_storage().nbytes() >= end
