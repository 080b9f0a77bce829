"""Sectors that warps touch, and the table of docs/kernels.md."""

from __future__ import annotations

import numpy as np
import pytest
from paths import ROOT

from ptx.coalescing import Coalescing
from ptx.kernel import Kernel
from ptx.launch import Launch
from ptx.memory import Memory
from ptx.parser import read
from ptx.traffic import BACKENDS, CASES, measure

COPY = """
.visible .entry copy(.param .u64 from, .param .u64 to, .param .u32 stride)
.reqntid 64
{
    .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<2>;
    ld.param.u64 %rd1, [from]; ld.param.u64 %rd2, [to]; ld.param.u32 %r1, [stride];
    mov.u32 %r2, %tid.x; mul.lo.s32 %r3, %r1, %r2;
    mul.wide.s32 %rd3, %r3, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    ld.global.f32 %f1, [%rd4]; st.global.f32 [%rd5], %f1;
    ret;
}
"""


@pytest.mark.parametrize("stride, sectors", [(0, 1), (1, 4), (2, 8), (8, 32), (9, 32)])
def test_sectors_of_a_warp(stride: int, sectors: int) -> None:
    """32 lanes of 4 bytes are four sectors in a row, up to one each where they are far apart."""
    memory = Memory()
    arrays = [np.zeros(64 * 9 + 8, np.float32) for _ in range(2)]
    # at a multiple of 32 bytes
    starts = [array[-array.ctypes.data % 32 // 4 :][: 64 * 9] for array in arrays]
    for name, array in zip(("from", "to"), starts, strict=True):
        memory.add_array(name, array)
    parameters = np.array([*(a.ctypes.data for a in starts), stride], np.uint64).tobytes()[:20]
    found = Coalescing()
    Launch(Kernel(read(COPY)["copy"]), 1, parameters, memory, observers=[found]).run()
    for kind in ("load", "store"):
        traffic = found.total(kind)
        assert (traffic.requests, traffic.bytes, traffic.sectors) == (2, 256, 2 * sectors)
    # stores of both warps to one address are one sector of memory
    assert found.distinct_sectors() == 2 * (1 if stride == 0 else 2 * sectors if stride < 9 else 64)


def _documented(compiler: str, name: str) -> list[float]:
    """The figures of a row of the table."""
    start = f"| {name} | {compiler} | "
    (row,) = (
        x for x in (ROOT / "docs" / "kernels.md").read_text().splitlines() if x.startswith(start)
    )
    return [float(cell) for cell in row.removeprefix(start).strip("| ").split(" | ")]


USUAL = ("Adam", "SGD, momentum", "statistics")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.ptx) for name in CASES]
)
@pytest.mark.parametrize("compiler", BACKENDS)
def test_documented_traffic(compiler: str, name: str) -> None:
    reason = BACKENDS[compiler].status().reason
    if reason:
        pytest.skip(reason)
    row = measure(compiler, name)
    # a table's entries may begin anywhere in a sector
    measured = [row.floor, row.moved, row.requested, row.touched]
    assert measured == pytest.approx(_documented(compiler, name), abs=0.05)
    assert row.floor <= row.moved < row.floor + 0.02
