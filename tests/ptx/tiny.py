"""Tiny kernels written by hand, for tests of the interpreter."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kernel import Kernel
from .launch import TOGETHER, Launch, Observer, Schedule
from .memory import Memory
from .parser import read
from .races import Race, RaceDetector

BEGIN = """
.visible .entry tiny(.param .u64 data, .param .u64 flag)
.reqntid {threads}
{{
    .shared .align 16 .b8 room[256];
    .reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<32>; .reg .b64 %rd<32>;
    ld.param.u64 %rd1, [data]; ld.param.u64 %rd2, [flag];
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %nctaid.x;
    setp.eq.u32 %p1, %r1, 0; setp.eq.u32 %p2, %r2, 0;
    mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3;
    mov.u32 %r10, 7;
"""
# %p1: the first thread of a block; %p2: the first block; %rd4: the word of data at the thread's number; %r10: 7


@dataclass
class Tiny:
    """What a tiny kernel did.

    Attributes:
        data, flag: its two buffers, uint32, as it left them.
        races: that it has.
    """

    data: NDArray[np.uint32]
    flag: NDArray[np.uint32]
    races: list[Race]

    @property
    def kinds(self) -> set[tuple[str, str, str]]:
        """The bases of both instructions and the buffer, of each race."""
        return {(r.first.base, r.second.base, r.where) for r in self.races}


def kernel_of(body: str, threads: int = 32) -> Kernel:
    """The kernel of this body, which `ret` ends."""
    return Kernel(read(BEGIN.format(threads=threads) + body + "\nret;\n}\n")["tiny"])


def run(
    body: str | Kernel,
    *,
    blocks: int = 2,
    threads: int = 32,
    schedule: Schedule = TOGETHER,
    words: int = 64,
    shuffles_order: bool = False,
    written: bool = True,
    data: Sequence[int] = (),
    observers: Sequence[Observer] = (),
) -> Tiny:
    """Run a kernel, or the one of this body.

    Args:
        blocks, threads, schedule, shuffles_order: of launch and detector.
        words: of the buffer `data`; the buffer `flag` follows it at once.
        written: something is in `data` before.
        data: its first words.
        observers: are told what happens.
    """
    memory = Memory()
    whole = np.zeros(words + 8, np.uint32)
    whole[: len(data)] = data
    arrays = whole[:words], whole[words:]
    memory.add("data", arrays[0].ctypes.data, arrays[0].nbytes, is_written=written)
    memory.add_array("flag", arrays[1])
    kernel = kernel_of(body, threads) if isinstance(body, str) else body
    detector = RaceDetector(blocks * threads, threads, memory, shuffles_order=shuffles_order)
    parameters = np.array([a.ctypes.data for a in arrays], np.uint64).tobytes()
    watching = [detector, *observers]
    launch = Launch(kernel, blocks, parameters, memory, schedule=schedule, observers=watching)
    launch.run()
    return Tiny(*arrays, list(detector.races()))


def in_each(schedules: Sequence[Schedule]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a test run with each of these schedules as its argument `schedule`, one after the other."""

    def of(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run_all(**arguments: Any) -> None:
            for schedule in schedules:
                test(schedule=schedule, **arguments)

        signature = inspect.signature(test)
        kept = [p for name, p in signature.parameters.items() if name != "schedule"]
        run_all.__signature__ = signature.replace(parameters=kept)  # for pytest
        return run_all

    return of
