"""Launches by hand (tests/support/kernel_problem.py), executed by the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from kernel_problem import Problem

from . import nvcc_launches, triton_launches
from .caught_launch import CaughtLaunch, Executor, Region


def buffers_of(problem: Problem) -> Iterator[Region]:
    """Tables, and each buffer of its own; the guard zones between them are out of reach."""
    for name in ("records", "tiles", "rows"):
        table = getattr(problem, name)
        yield Region(name, table.ctypes.data, table.nbytes, False)
    for i, record in enumerate(problem.records):
        for field in problem._fields(i):
            # of a record without a gradient the address is 0
            if record[field] and problem.numel[i]:
                yield Region(f"{field}[{i}]", int(record[field]), 4 * int(problem.numel[i]), True)


def updated_by(compiler: str, executor: Executor, problem: Problem) -> np.ndarray:
    """What the kernel makes of the memory, which itself stays as it is."""

    def execute(caught: CaughtLaunch) -> None:
        executor(replace(caught, regions=tuple(buffers_of(problem))))

    before = problem.memory.copy()
    try:
        if compiler == "nvcc":
            with nvcc_launches.catching(execute):
                nvcc_launches.native_module().step(problem.args(), 0, 0)
        else:
            with triton_launches.catching(execute):
                _launch_triton(problem)
        return problem.memory.copy()
    finally:
        problem.memory[:] = before


def _launch_triton(problem: Problem) -> None:
    from stackelberg_fused.triton_kernels.launch_options import LaunchOptions
    from stackelberg_fused.triton_kernels.step import launch_step

    records, tiles, rows = (
        torch.from_numpy(table.view(np.uint8).reshape(-1))
        for table in (problem.records, problem.tiles, problem.rows)
    )
    words = records.view(torch.int64), tiles.view(torch.int64), rows.view(torch.float32)
    more = {name: bool(problem.more.get(name)) for name in ("takes_turns", "zero_grads")}
    launch_step(*words, 0, len(problem.tiles), 0, problem.present, LaunchOptions(**more))
