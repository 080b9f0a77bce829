"""Backends by name for tests that hold for all of them: natively, on the host through the shim, or interpreted."""

from __future__ import annotations

from typing import Any

import pytest
from cases import Options, groups_of, sizes_for
from host_cuda.backend import HostCudaBackend

from stackelberg_fused.backends.cpu import CpuBackend
from stackelberg_fused.backends.triton import is_interpreting


def rounds_fma_twice() -> bool:
    """Tell whether kernels run in a Triton interpreter that rounds `tl.fma` twice, as those before 3.9 do.

    Every other kernel gives the bits of `cpu`.
    """
    if not is_interpreting():
        return False
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


HOST = ["reference", "cpu", "avx2", "baseline", "cuda-on-host"]
by_host_backend = pytest.mark.parametrize("backend", HOST)
by_native_host_backend = pytest.mark.parametrize("backend", HOST[1:])
GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton")]
# interpreted Triton runs in a process of its own, because TRITON_INTERPRET is read when a kernel is decorated
by_backend = pytest.mark.parametrize("backend", ["triton"] if is_interpreting() else [*HOST, *GPU])
by_native_backend = pytest.mark.parametrize(
    "backend", ["triton"] if is_interpreting() else [*HOST[1:], *GPU]
)


# beside `cpu`, whose bits they have to give
AS_CPU = ["avx2", "baseline", "cuda-on-host"]
if is_interpreting():
    AS_CPU = [
        pytest.param(
            "triton",
            marks=pytest.mark.skipif(
                rounds_fma_twice(), reason="Triton's interpreter before 3.9 rounds fma twice"
            ),
        )
    ]


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


def optimizer_by(options: Options, backend: str, **more: Any) -> Any:
    """An optimizer of these options over groups of all sizes that matter, on a backend by name."""
    instance, device = chosen(backend)
    groups = groups_of(sizes_for(7), device, mixed=options.mixed)
    return options.ours(groups, backend=instance, **more)
