"""Quotients of `InRange` (csrc/cuda/in_range_math.cuh) as nvcc compiles them, with any approximate unit."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from build_once import cache, digest, once, run
from numpy.typing import NDArray
from paths import CSRC

from .approximate import Unit
from .kernel import Kernel
from .launch import Launch, Schedule
from .memory import Memory
from .nvcc_build import FLAGS, HERE, nvcc
from .parser import read

SOURCE = HERE / "in_range.cu"
THREADS = 256
Float32 = NDArray[np.float32]


def compiled(*how: str, suffix: str) -> Path:
    """What nvcc makes of the source with these flags, once."""
    command = [nvcc(), *how, str(SOURCE)]
    target = (
        cache("ptx")
        / f"in_range-{digest((CSRC, HERE), repr(command), run([nvcc(), '--version']))}{suffix}"
    )
    return once(target, lambda made: run([*command, "-o", str(made)]))


@lru_cache
def _kernel() -> Kernel:
    return Kernel(read(compiled(*FLAGS, "-ptx", suffix=".ptx").read_text())["ratios"])


def ratios(exp_avg: Float32, second_moment: Float32, eps: Float32, unit: Unit) -> Float32:
    """exp_avg / (root(second_moment) + eps) for each of equally many elements."""
    count = len(exp_avg)
    blocks = -(-count // THREADS)
    operands = [np.ones(blocks * THREADS, np.float32) for _ in range(3)]
    for padded, given in zip(operands, (exp_avg, second_moment, eps), strict=True):
        padded[:count] = given
    found = np.zeros(blocks * THREADS, np.float32)
    memory = Memory()
    for name, array in zip(
        ("exp_avg", "second_moment", "eps", "found"), (*operands, found), strict=True
    ):
        memory.add_array(name, array)
    parameters = np.array([a.ctypes.data for a in (*operands, found)], np.uint64).tobytes()
    Launch(
        _kernel(), blocks, parameters, memory, threads=THREADS, unit=unit, schedule=Schedule(2048)
    ).run()
    return found[:count]
