"""Launches of the Triton kernels, compiled as for a GPU and caught where they would go to the driver.

What Triton asks of a driver is the same in all versions that the package is tested with: a target, a function for a
binary, and an object that is called with the grid and the arguments.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from build_once import kept_by_triton

from stackelberg_fused.backends.triton import is_interpreting

from .caught_launch import CaughtLaunch, Executor, Param, packed, params_of

try:
    import triton
    from triton.backends.compiler import GPUTarget
except ImportError:
    triton = None

ARCH = 90
DEVICE = 1000 + ARCH  # kernels are kept by device; no machine has so many
SHARED_OF_A_BLOCK = 227 * 1024


def unavailable() -> str:
    """Why nothing can be compiled here, or empty."""
    if triton is None:
        return "triton is not installed"
    return "a process that interprets Triton compiles nothing" if is_interpreting() else ""


class _Driver:
    """A driver without a GPU, for `triton.runtime.driver`; and its own `utils`."""

    def __init__(self) -> None:
        self.utils = self

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", ARCH, 32)

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_OF_A_BLOCK}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """No module, which would have to be unloaded; function, registers, spills; threads of a block."""
        return None, 0, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return _Launcher(source, metadata)


class _Launcher:
    """What Triton calls to launch a kernel. Triton keeps it, for launches under other drivers too."""

    executor: ClassVar[Executor | None] = None

    def __init__(self, source: Any, metadata: Any) -> None:
        self._source, self._metadata = source, metadata

    def __call__(self, *all_of_it: Any) -> None:
        # the grid; the stream, the function, what is to be known of it, hooks; the arguments
        grid, args = all_of_it[:3], all_of_it[9:]
        assert grid[1:] == (1, 1), grid
        assert self.executor is not None, "nobody catches launches"
        arguments = dict(zip(self._source.fn.arg_names, args, strict=True))
        self.executor(self._caught(grid[0], arguments))

    def _caught(self, grid: int, arguments: Mapping[str, Any]) -> CaughtLaunch:
        metadata = self._metadata
        ptx = self._ptx()
        params = params_of(ptx)[metadata.name]
        # those that became constants are not passed
        types = self._source.signature
        passed = [name for name in arguments if types[name] != "constexpr"]
        hidden = params[len(passed) :]  # for scratch memory, of which these kernels have none
        assert len(hidden) <= 2, params
        assert not any(
            getattr(metadata, f"{which}_scratch_size", 0) for which in ("global", "profile")
        )
        values = [_bytes(arguments[n], p) for n, p in zip(passed, params, strict=False)]
        return CaughtLaunch(
            compiler="triton",
            ptx=ptx,
            kernel=metadata.name,
            grid=grid,
            threads=32 * metadata.num_warps,
            params=packed(params, values),
            dynamic_shared=metadata.shared,
            arguments=arguments,
            passed=tuple(passed),
        )

    def _ptx(self) -> str:
        kernels = self._source.fn.device_caches[DEVICE][0].values()
        (text,) = {k.asm["ptx"] for k in kernels if k.metadata is self._metadata}
        return text


def _bytes(value: Any, param: Param) -> bytes:
    if isinstance(value, torch.Tensor):
        value = value.data_ptr()
    return int(value).to_bytes(param.size, "little", signed=True)


@contextmanager
def catching(executor: Executor) -> Iterator[None]:
    """Hand launches of Triton kernels over; compiled kernels are kept in build/, as Triton keeps them."""
    driver = triton.runtime.driver
    active = "_active" if hasattr(driver, "_active") else "active"  # the latter before Triton 3.5
    with (
        patch.dict(os.environ, TRITON_CACHE_DIR=kept_by_triton()),
        patch.object(_Launcher, "executor", staticmethod(executor)),
        patch.object(driver, active, _Driver()),
    ):
        yield
