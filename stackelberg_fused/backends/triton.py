"""The Triton backend: triton_kernels on NVIDIA GPUs, and on the CPU where Triton interprets (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..layout import Table
from ..statistics import ClipLimits
from .base import Backend, BackendStatus, Work
from .mirror import joint_sets_on_device, tables_on_device

try:
    from ..triton_kernels.project import launch_project
    from ..triton_kernels.statistics import launch_statistics
    from ..triton_kernels.step import JOINT_ARGUMENTS, Extras, launch_step

    _IMPORT_ERROR = ""
except ImportError as error:
    launch_step = launch_statistics = launch_project = Extras = None
    JOINT_ARGUMENTS = ()
    _IMPORT_ERROR = str(error)


def is_interpreting() -> bool:
    """Whether kernels run in Triton's interpreter: read when they are decorated, so it cannot change later."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


class TritonBackend(Backend):
    """One Triton kernel for all groups, from the same tables as `cuda`."""

    name = "triton"
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

    def refusal(self, device: torch.device, dtype: torch.dtype) -> str:
        if device.type != ("cpu" if is_interpreting() else "cuda"):
            return f"the triton backend cannot update parameters on {device}"
        if dtype is not torch.float32:
            return f"the triton backend updates float32 parameters, not {dtype}"
        return ""

    @staticmethod
    def _on_device(table: Table) -> AbstractContextManager[Any]:
        return nullcontext() if is_interpreting() else torch.cuda.device(table.device)

    def statistics(self, work: Work, limits: ClipLimits) -> int:
        table, span = work.table, work.span
        with self._on_device(table):
            records, tiles, rows, *groups = tables_on_device(table)
            launch_statistics(
                records.view(torch.int64),
                tiles.view(torch.int64),
                span.first_tile,
                span.last_tile - span.first_tile,
                table.first_head_tile,
                work.statistics.tile_sums,
                work.statistics.signals.view(torch.float64),
                work.statistics.limits_on_device(limits),
                limits.joint,
                rows.view(torch.float32),
                _extras(work, *groups),
            )
        return 1

    def step(self, work: Work) -> int:
        table, span = work.table, work.span
        with self._on_device(table):
            records, tiles, rows, *groups = tables_on_device(table)
            launch_step(
                records.view(torch.int64),
                tiles.view(torch.int64),
                rows.view(torch.float32),
                span.first_tile,
                span.last_tile - span.first_tile,
                table.first_head_tile,
                work.rule,
                _extras(work, *groups),
            )
        return 1

    def project(self, work: Work) -> int:
        table, joint, span = work.table, work.joint_sets, work.span
        with self._on_device(table):
            records, _, rows, *_ = tables_on_device(table)
            sets, pieces = joint_sets_on_device(table)
            launch_project(
                records.view(torch.int64),
                rows.view(torch.float32),
                sets.view(torch.int64),
                pieces.view(torch.int64),
                *joint.piece_range(span.first_slot, span.last_slot),
                joint.factors,
                joint.moved,
                work.scaling and work.scaling.found_inf,
            )
        return 1


def _joint(work: Work) -> dict[str, Tensor]:
    """The kernel's arguments about joint sets."""
    joint = work.joint_sets
    if joint is None:
        return {}
    sets = joint_sets_on_device(work.table)[0].view(torch.int64)
    results = (joint.sums, joint.factors, joint.tiles_done, joint.moved)
    return dict(zip(JOINT_ARGUMENTS, (sets, *results), strict=True))


def _extras(work: Work, groups: Tensor | None = None) -> Extras:
    counts, scaling = work.table.counts, work.scaling
    return Extras(
        factors=work.statistics and work.statistics.factors,
        grad_scale=scaling and scaling.grad_scale,
        found_inf=scaling and scaling.found_inf,
        groups=None if groups is None else groups.view(torch.float64),
        steps=counts and counts.steps,
        ready=counts and counts.ready,
        waited=counts and counts.waited,
        arrived=counts and counts.arrived,
        takes_turns=work.table.turns_in(work.span),
        zero_grads=work.zero_grads,
        joint=_joint(work),
    )
