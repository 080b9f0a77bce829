"""The Triton backend: triton_kernels on NVIDIA GPUs, and on the CPU where Triton interprets (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..layout.slot import Kind
from ..layout.statistics import ClipLimits
from ..layout.table import Table
from ..memory import device_runtime
from .base import (
    Backend,
    BackendStatus,
    Launch,
    refusal_of_kernel,
)
from .device_tables import tables_on_device

try:
    from ..triton_kernels.launch_options import JOINT_ARGUMENTS, LaunchOptions
    from ..triton_kernels.project import launch_project
    from ..triton_kernels.statistics import launch_statistics
    from ..triton_kernels.step import launch_step

    _IMPORT_ERROR = ""
except ImportError as error:
    launch_step = launch_statistics = launch_project = LaunchOptions = None
    JOINT_ARGUMENTS = ()
    _IMPORT_ERROR = str(error)


def is_interpreting() -> bool:
    """Tell whether kernels run in Triton's interpreter; Triton reads the variable when it decorates them, once."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


class TritonBackend(Backend):
    """One Triton kernel for all groups, from the same tables as `cuda`."""

    name = "triton"
    mixes_dtypes = True
    counts_on_device = True

    @classmethod
    def status(cls) -> BackendStatus:
        if launch_step is None:
            reason = f"triton cannot be imported ({_IMPORT_ERROR}); pip install triton (Linux only)"
        elif is_interpreting() or torch.cuda.is_available():
            reason = ""
        else:
            reason = "torch sees no CUDA device (TRITON_INTERPRET=1 runs the kernel on the CPU, for tests)"
        return BackendStatus(cls.name, not reason, reason)

    def refusal(self, kind: Kind) -> str:
        return refusal_of_kernel(self.name, "cpu" if is_interpreting() else "cuda", kind)

    @staticmethod
    def _on_device(table: Table) -> AbstractContextManager[Any]:
        return nullcontext() if is_interpreting() else device_runtime.on_device(table.device)

    def statistics(self, launch: Launch, limits: ClipLimits) -> int:
        table, span, statistics = launch.table, launch.span, launch.needed_statistics
        with self._on_device(table):
            tables = tables_on_device(table, span)
            launch_statistics(
                tables["records"].view(torch.int64),
                tables["tiles"].view(torch.int64),
                span.first_tile,
                span.last_tile - span.first_tile,
                launch.first_head_tile,
                statistics.sums,
                statistics.digits,
                statistics.buffer.view(torch.float64),
                statistics.limits_on_device(limits),
                limits.joint,
                tables["rows"].view(torch.float32),
                launch.scaling and launch.scaling.sought,
                _options(launch, tables),
            )
        return 1

    def step(self, launch: Launch) -> int:
        with self._on_device(launch.table):
            tables = tables_on_device(launch.table, launch.span)  # once for both launches
            _update(launch, tables)
            if launch.joint_sets is None:
                return 1
            _project(launch, tables)
        return 2

    def update(self, launch: Launch) -> int:
        with self._on_device(launch.table):
            _update(launch, tables_on_device(launch.table, launch.span))
        return 1

    def project(self, launch: Launch) -> int:
        with self._on_device(launch.table):
            _project(launch, tables_on_device(launch.table, launch.span))
        return 1


def _update(launch: Launch, tables: Mapping[str, Tensor]) -> None:
    span = launch.span
    launch_step(
        tables["records"].view(torch.int64),
        tables["tiles"].view(torch.int64),
        tables["rows"].view(torch.float32),
        span.first_tile,
        span.last_tile - span.first_tile,
        launch.first_head_tile,
        launch.table.rows.rules,
        _options(launch, tables),
    )


def _project(launch: Launch, tables: Mapping[str, Tensor]) -> None:
    span, joint_sets = launch.span, launch.needed_joint_sets
    launch_project(
        tables["records"].view(torch.int64),
        tables["rows"].view(torch.float32),
        tables["sets"].view(torch.int64),
        tables["pieces"].view(torch.int64),
        *joint_sets.piece_range(span.first_slot, span.last_slot),
        joint_sets.factors,
        joint_sets.moved,
        launch.scaling and launch.scaling.found_inf,
    )


def _options(launch: Launch, tables: Mapping[str, Tensor]) -> LaunchOptions:
    counts, scaling, joint = launch.table.counts, launch.scaling, launch.joint_sets
    results: tuple[Tensor, ...] = ()
    if joint is not None:
        results = (tables["sets"].view(torch.int64), *joint.results)
    return LaunchOptions(
        factors=launch.statistics and launch.statistics.factors,
        grad_scale=scaling and scaling.grad_scale,
        found_inf=scaling and scaling.found_inf,
        groups=tables["groups"].view(torch.float64) if "groups" in tables else None,
        steps=counts and counts.steps,
        ready=counts and counts.ready,
        waited=counts and counts.waited,
        arrived=counts and counts.arrived,
        takes_turns=launch.table.turns_in(launch.span.first_slot, launch.span.last_slot),
        zero_grads=launch.zero_grads,
        joint=dict(zip(JOINT_ARGUMENTS, results, strict=False)),
        formats=launch.table.formats,
    )
