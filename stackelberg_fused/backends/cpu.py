"""The CPU backend: csrc/cpu through the extension module `_cpu`."""

from __future__ import annotations

from functools import partial

import torch

from ..layout.part import Part
from ..layout.slot import Kind
from ..layout.statistics import ClipLimits
from .base import (
    Backend,
    BackendStatus,
    Launch,
    refusal_of_kernel,
)
from .launch_args import project_args, statistics_args, step_args

try:
    from .. import _cpu

    _IMPORT_ERROR = ""
except ImportError as error:
    _cpu = None
    _IMPORT_ERROR = str(error)


class CpuBackend(Backend):
    """One pass per tile in C++, vectorised for the instruction set found at run time, on torch's own threads.

    Args:
        isa: "avx512", "avx2" or "baseline"; empty takes the widest that this processor runs.
    """

    name = "cpu"
    mixes_dtypes = True
    is_native = True

    def __init__(self, isa: str = "") -> None:
        self._isa = _cpu.isa(isa)

    @classmethod
    def status(cls) -> BackendStatus:
        if _cpu is None:
            return BackendStatus(
                cls.name,
                False,
                f"the extension is not built ({_IMPORT_ERROR}); install a C++ compiler and reinstall",
            )
        return BackendStatus(cls.name, True)

    def refusal(self, kind: Kind) -> str:
        return refusal_of_kernel(self.name, "cpu", kind)

    def statistics(self, launch: Launch, limits: ClipLimits) -> int:
        args = statistics_args(launch, limits, _tables(launch))
        _cpu.statistics(args, torch.get_num_threads(), self._isa)
        return 1

    def conclude(self, launch: Launch, limits: ClipLimits) -> int:
        _cpu.conclude(statistics_args(launch, limits, _tables(launch)))
        return 0

    def step(self, launch: Launch) -> int:
        tables, threads = _tables(launch), torch.get_num_threads()
        update = partial(_cpu.step, step_args(launch, tables), threads, self._isa)
        if launch.joint_sets is None:
            launch.make(update)
            return 1
        launch.make(update, partial(_cpu.project, project_args(launch, tables), threads))
        return 2

    def update(self, launch: Launch) -> int:
        _cpu.step(step_args(launch, _tables(launch)), torch.get_num_threads(), self._isa)
        return 1

    def project(self, launch: Launch) -> int:
        args = project_args(launch, _tables(launch))
        launch.make(partial(_cpu.project, args, torch.get_num_threads()))
        return 1


def updated_elements() -> dict[str, int]:
    """Count the elements that this backend has updated in this process, by path; all paths give the same bits.

    "in place": float32 with float32 state. Others "vectors": by AVX-512, in registers from unpacking to storing; or
    "chunks": the general path, of any rule and any processor. Empty where the extension is not built.
    """
    return {} if _cpu is None else dict(_cpu.updated_elements())


def _tables(launch: Launch) -> dict[str, int]:
    """Addresses of the host's own."""
    table, joint = launch.table, launch.joint_sets
    span = launch.span
    found = {
        "records": table.records_address,
        "tiles": span.tiles.ctypes.data if type(span) is Part else table.tiles_address,
        "rows": table.rows.address,
    }
    if joint is not None:
        found |= {"sets": joint.sets.ctypes.data, "pieces": joint.pieces.ctypes.data}
    return found
