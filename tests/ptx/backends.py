"""The CUDA and Triton backends over tensors on the CPU: what they would launch goes to an executor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from stackelberg_fused.backends import Backend, BackendStatus, Launch
from stackelberg_fused.backends import cuda as cuda_backend
from stackelberg_fused.backends.base import refusal_of_kernel
from stackelberg_fused.backends.cuda import CudaBackend
from stackelberg_fused.backends.triton import TritonBackend
from stackelberg_fused.layout.slot import Kind
from stackelberg_fused.layout.statistics import ClipLimits

from . import nvcc_build, nvcc_launches, triton_launches
from .caught_launch import CaughtLaunch, Executor
from .regions import regions_of


class _Catching(Backend):
    """A backend whose launches go to an executor, with what each of them may reach.

    Args:
        executor: called in the place of a launch; its effects are there when it returns.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def refusal(self, kind: Kind) -> str:
        return refusal_of_kernel(self.name, "cpu", kind)

    def _hardware(self, executor: Executor) -> AbstractContextManager[None]:
        """Within it the backend finds a device, whose launches go to `executor`."""
        raise NotImplementedError

    @contextmanager
    def _catching(self, launch: Launch, limits: ClipLimits | None = None) -> Iterator[None]:
        def take(caught: CaughtLaunch) -> None:
            regions = regions_of(kind_of(caught.kernel), launch, limits)
            self._executor(replace(caught, regions=regions))

        with self._hardware(take):
            yield

    def statistics(self, launch: Launch, limits: ClipLimits) -> int:
        with self._catching(launch, limits):
            return super().statistics(launch, limits)

    def conclude(self, launch: Launch, limits: ClipLimits) -> int:
        with self._catching(launch, limits):
            return super().conclude(launch, limits)

    def step(self, launch: Launch) -> int:
        with self._catching(launch):
            return super().step(launch)

    def update(self, launch: Launch) -> int:
        with self._catching(launch):
            return super().update(launch)

    def project(self, launch: Launch) -> int:
        with self._catching(launch):
            return super().project(launch)


def kind_of(kernel: str) -> str:
    """Which of `regions.LAUNCHES` a kernel is for."""
    match = re.search(r"(step|low_precision|statistics|conclude|project)_kernel", kernel)
    assert match, kernel
    return match[1].replace("low_precision", "step")


class _Device0:
    """The module `_cuda` for a backend whose tensors have no device index."""

    def __getattr__(self, name: str) -> Any:
        launch = getattr(nvcc_launches.native_module(), name)
        return lambda args, index, stream: launch(args, index or 0, stream)


_STREAM = SimpleNamespace(cuda_stream=0)
_RUNTIME = SimpleNamespace(
    on_device=lambda index: nullcontext(), current_stream=lambda index: _STREAM
)


class PtxCudaBackend(_Catching, CudaBackend):
    """As `CudaBackend`, with what nvcc compiled."""

    name = "cuda-ptx"

    @classmethod
    def status(cls) -> BackendStatus:
        return BackendStatus(cls.name, not nvcc_build.unavailable(), nvcc_build.unavailable())

    @contextmanager
    def _hardware(self, executor: Executor) -> Iterator[None]:
        hardware = patch.multiple(cuda_backend, device_runtime=_RUNTIME, _cuda=_Device0())
        with hardware, nvcc_launches.catching(executor):
            yield


class PtxTritonBackend(_Catching, TritonBackend):
    """As `TritonBackend`, with what Triton compiled; not in a process that interprets."""

    name = "triton-ptx"

    @classmethod
    def status(cls) -> BackendStatus:
        reason = triton_launches.unavailable()
        return BackendStatus(cls.name, not reason, reason)

    @staticmethod
    def _on_device(table: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def _hardware(self, executor: Executor) -> AbstractContextManager[None]:
        return triton_launches.catching(executor)
