"""Marks of tests that not every machine can run."""

from __future__ import annotations

import pytest
import torch
from host_cuda.backend import HostCudaBackend
from recording.posed_device import unavailable

from stackelberg_fused.native.tensor_abi import tensor_abi

needs_native = pytest.mark.skipif(
    tensor_abi() is None, reason="needs the extension, and a torch that it can read tensors of"
)
needs_shim = pytest.mark.skipif(
    not HostCudaBackend.status().available, reason=HostCudaBackend.status().reason
)
needs_gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)
needs_posed_gpu = pytest.mark.skipif(
    bool(unavailable() or not HostCudaBackend.status().available),
    reason=unavailable() or HostCudaBackend.status().reason,
)
