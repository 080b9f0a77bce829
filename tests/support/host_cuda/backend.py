"""The CUDA kernel as a backend on the host: csrc/cuda/step.cu, compiled by g++ behind the shim."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import NamedTuple

from stackelberg_fused.backends import Backend, BackendStatus, Launch
from stackelberg_fused.backends.base import refusal_of_kernel
from stackelberg_fused.backends.device_tables import addresses, tables_on_device
from stackelberg_fused.backends.launch_args import project_args, statistics_args, step_args
from stackelberg_fused.layout.slot import Kind
from stackelberg_fused.layout.statistics import ClipLimits
from stackelberg_fused.native.tables import STEP_ARGS

from .build import STEP, build, unavailable

ORDERS = ("forward", "reverse", "shuffled")


class Counters(NamedTuple):
    """Since the process started; subtract two of them.

    Attributes:
        bytes: moved by accesses to per-element buffers.
        vector_bytes: those of them moved by 128-bit accesses.
    """

    launches: int
    blocks: int
    bytes: int
    vector_bytes: int

    def since(self, before: Counters) -> Counters:
        return Counters(*(now - then for now, then in zip(self, before, strict=True)))


@cache
def library() -> ctypes.PyDLL:
    """The kernel; PyDLL because its fibers share one set of globals: the GIL keeps launches apart."""
    loaded = ctypes.PyDLL(str(build(STEP)))
    names = "step", "statistics", "conclude", "project"
    for launch in (getattr(loaded, f"sf_host_{name}") for name in names):
        launch.restype, launch.argtypes = ctypes.c_char_p, [ctypes.c_char_p]
    loaded.sf_host_set_order.argtypes = [ctypes.c_int, ctypes.c_uint64]
    loaded.sf_host_counters.restype = ctypes.POINTER(ctypes.c_int64 * len(Counters._fields))
    return loaded


def counters() -> Counters:
    return Counters(*library().sf_host_counters().contents)


class HostCudaBackend(Backend):
    """Runs the CUDA kernel on CPU parameters, for `StackelbergAdamW(..., backend=HostCudaBackend())`.

    Args:
        order: in which order blocks, and threads between barriers, run: "forward", "reverse" or "shuffled".
        seed: of the shuffling.

    Raises:
        RuntimeError: on construction, where no C++ compiler is; from `step`, what a GPU would report: a misaligned
            access, a barrier that some thread never reaches.
    """

    name = "cuda-on-host"
    mixes_dtypes = True
    counts_on_device = True

    def __init__(self, order: str = "forward", seed: int = 0) -> None:
        if unavailable():
            raise RuntimeError(unavailable())
        self._order = ORDERS.index(order)
        self._seed = seed

    @classmethod
    def status(cls) -> BackendStatus:
        return BackendStatus(cls.name, not unavailable(), unavailable())

    def refusal(self, kind: Kind) -> str:
        return refusal_of_kernel(self.name, "cpu", kind)

    def statistics(self, launch: Launch, limits: ClipLimits) -> int:
        library().sf_host_set_order(self._order, self._seed)
        args = statistics_args(
            launch, limits, addresses(tables_on_device(launch.table, launch.span))
        )
        _check(library().sf_host_statistics(args))
        return 1

    def conclude(self, launch: Launch, limits: ClipLimits) -> int:
        args = statistics_args(
            launch, limits, addresses(tables_on_device(launch.table, launch.span))
        )
        _check(library().sf_host_conclude(args))
        return 1

    def update(self, launch: Launch) -> int:
        library().sf_host_set_order(self._order, self._seed)
        tables = tables_on_device(launch.table, launch.span)
        args = step_args(launch, addresses(tables))
        self._recorded = args, {name: table.clone() for name, table in tables.items()}
        _check(library().sf_host_step(args))
        return 1

    def project(self, launch: Launch) -> int:
        library().sf_host_set_order(self._order, self._seed)
        tables = tables_on_device(launch.table, launch.span)
        _check(library().sf_host_project(project_args(launch, addresses(tables))))
        return 1

    def replay(self) -> None:
        """Repeat the last step's launch, as a CUDA graph would that captured it: with its arguments and its tables."""
        packed, tables = self._recorded
        layout = struct.Struct("<" + "".join(STEP_ARGS.values()))
        values = dict(zip(STEP_ARGS, layout.unpack(packed), strict=True))
        values.update((n, a) for n, a in addresses(tables).items() if n in values)
        args = layout.pack(*values.values())
        library().sf_host_set_order(self._order, self._seed)
        _check(library().sf_host_step(args))


def _check(error: bytes | None) -> None:
    if error:
        raise RuntimeError(f"CUDA launch failed: {error.decode()}")
