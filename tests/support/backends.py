"""Backends by name for tests that hold for all of them: natively, on the host through the shim, or interpreted."""

from __future__ import annotations

from typing import Any

import pytest
from host_cuda.backend import HostCudaBackend

from stackelberg_fused.backends.cpu import CpuBackend
from stackelberg_fused.backends.triton import is_interpreting

HOST = ["reference", "cpu", "avx2", "baseline", "cuda-on-host"]
by_host_backend = pytest.mark.parametrize("backend", HOST)
by_native_host_backend = pytest.mark.parametrize("backend", HOST[1:])
GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton")]
# interpreted Triton runs in a process of its own, because TRITON_INTERPRET is read when a kernel is decorated
by_backend = pytest.mark.parametrize("backend", ["triton"] if is_interpreting() else [*HOST, *GPU])
by_native_backend = pytest.mark.parametrize(
    "backend", ["triton"] if is_interpreting() else [*HOST[1:], *GPU]
)


def chosen(backend: str) -> tuple[Any, str]:
    """A backend, and the device that it runs on."""
    if backend == "cuda-on-host":
        if not HostCudaBackend.status().available:
            pytest.skip(HostCudaBackend.status().reason)
        return HostCudaBackend(order="shuffled", seed=1), "cpu"
    if backend in ("avx2", "baseline"):
        try:
            return CpuBackend(isa=backend), "cpu"
        except RuntimeError as error:
            pytest.skip(str(error))
    return backend, "cuda" if backend in ("cuda", "triton") and not is_interpreting() else "cpu"
