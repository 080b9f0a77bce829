"""torch's tensors in native code: whether it can read them, and what else it then does faster.

`csrc/cpu/tensor_abi.cpp` reads tensors through the C functions that libtorch keeps stable for compiled models. Where a
torch lacks one of them, or a probe does not read as it should, Python takes over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

try:
    from .._cpu import TensorAbi
except ImportError:
    TensorAbi = None

log = logging.getLogger("stackelberg_fused")


def _open() -> Any:
    if TensorAbi is None:
        return None
    probe = torch.zeros(3, 2, device="cpu").t()
    types = (Tensor, torch.nn.Parameter)
    try:
        return TensorAbi(types, Tensor.__torch_dispatch__, probe, probe._cdata, probe.data_ptr())
    except (RuntimeError, AttributeError) as error:
        log.info("tensors are read by Python, one by one: %s", error)
        return None


TENSOR_ABI = _open()


# tells autograd that tensors were written to: of a list, as `torch.autograd.graph.increment_version` does in more time
increment_versions: Callable[[list[Tensor]], None] = (
    increment_version if TENSOR_ABI is None else TENSOR_ABI.increment_versions
)
