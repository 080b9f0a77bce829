"""The CUDA backend: csrc/cuda through the extension module `_cuda`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..build_info import build_info, covers, driver_runs
from ..layout.slot import Kind
from ..layout.statistics import ClipLimits
from ..memory import device_runtime
from .base import (
    Backend,
    BackendStatus,
    Launch,
    refusal_of_kernel,
)
from .device_tables import addresses, tables_on_device
from .launch_args import project_args, statistics_args, step_args

try:
    from .. import _cuda as native_module

    _IMPORT_ERROR = ""
except ImportError as error:
    native_module = None
    _IMPORT_ERROR = str(error)
_cuda: Any = native_module


class CudaBackend(Backend):
    """One kernel on the current stream for all groups; NVIDIA sm_80 and newer."""

    name = "cuda"
    mixes_dtypes = True
    is_native = True
    counts_on_device = True

    @classmethod
    def status(cls) -> BackendStatus:
        if _cuda is None:
            reason = f"the extension is not built ({_IMPORT_ERROR}); install nvcc and reinstall"
        elif not torch.cuda.is_available():
            reason = "torch sees no CUDA device"
        elif torch.version.hip:
            reason = "the GPU is not NVIDIA's"
        elif not covers(build_info().get("archs", []), torch.cuda.get_device_capability()):
            reason = "the extension holds no code for this GPU (sm_80 and newer); see doctor"
        elif not driver_runs(_cuda.runtime_version(), _cuda.driver_version()):
            reason = (
                f"the driver supports CUDA {_version(_cuda.driver_version())}, the extension was built with "
                f"{_version(_cuda.runtime_version())}; update the driver or rebuild with an older nvcc"
            )
        else:
            reason = ""
        return BackendStatus(cls.name, not reason, reason)

    def refusal(self, kind: Kind) -> str:
        return refusal_of_kernel(self.name, "cuda", kind)

    def statistics(self, launch: Launch, limits: ClipLimits) -> int:
        index = launch.table.device.index
        with device_runtime.on_device(index):
            args = statistics_args(
                launch, limits, addresses(tables_on_device(launch.table, launch.span))
            )
            _cuda.statistics(args, index, device_runtime.current_stream(index).cuda_stream)
        return 1

    def conclude(self, launch: Launch, limits: ClipLimits) -> int:
        index = launch.table.device.index
        with device_runtime.on_device(index):
            args = statistics_args(
                launch, limits, addresses(tables_on_device(launch.table, launch.span))
            )
            _cuda.conclude(args, index, device_runtime.current_stream(index).cuda_stream)
        return 1

    def step(self, launch: Launch) -> int:
        index = launch.table.device.index
        with device_runtime.on_device(index):
            tables = addresses(tables_on_device(launch.table, launch.span))
            stream = device_runtime.current_stream(index).cuda_stream
            update = partial(_cuda.step, step_args(launch, tables), index, stream)
            if launch.joint_sets is None:
                launch.make(update)
                return 1
            project = partial(_cuda.project, project_args(launch, tables), index, stream)
            launch.make(update, project)
        return 2

    def update(self, launch: Launch) -> int:
        index = launch.table.device.index
        with device_runtime.on_device(index):
            tables = addresses(tables_on_device(launch.table, launch.span))
            stream = device_runtime.current_stream(index).cuda_stream
            _cuda.step(step_args(launch, tables), index, stream)
        return 1

    def project(self, launch: Launch) -> int:
        index = launch.table.device.index
        with device_runtime.on_device(index):
            tables = addresses(tables_on_device(launch.table, launch.span))
            stream = device_runtime.current_stream(index).cuda_stream
            launch.make(partial(_cuda.project, project_args(launch, tables), index, stream))
        return 1


def _version(encoded: int) -> str:
    return f"{encoded // 1000}.{encoded % 1000 // 10}"
