"""The table of docs/kernels.md: bytes that the kernels' warps touch per parameter, beside those that must move.

`make ptx-traffic` prints it; `CASE="Adam, 8bit"` what each instruction of that kernel touches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from named_schemes import NAMED
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.native.tables import TILE_ELEMENTS

from .backends import PtxCudaBackend, PtxTritonBackend, kind_of
from .caught_launch import CaughtLaunch
from .coalescing import SECTOR_BYTES, Coalescing
from .interpreted import Interpreted
from .memory import Memory

TILES = 4
BACKENDS = {"nvcc": PtxCudaBackend, "Triton": PtxTritonBackend}


@dataclass(frozen=True)
class Case:
    """A kernel to measure: one parameter of full tiles, aligned.

    Attributes:
        floor: bytes per parameter that have to be read and written.
        make: builds the optimizer from parameters and a backend.
        dtype, grad: of parameter and gradient.
        kind: of the launch that is counted, see `kind_of`.
    """

    floor: float
    make: Callable[..., Any]
    dtype: torch.dtype = torch.float32
    grad: torch.dtype = torch.float32
    kind: str = "step"


def _of(kind: type, **settings: Any) -> Callable[..., Any]:
    return lambda params, backend: kind(params, lr=0.01, backend=backend, **settings)


ADAM, SGD = sf.StackelbergAdamW, sf.StackelbergSGD
CASES = {
    "Adam": Case(28, _of(ADAM)),
    "Adam, amsgrad": Case(36, _of(ADAM, amsgrad=True)),
    "Adam, with an average": Case(36, _of(ADAM, ema_decay=0.9)),
    "SGD": Case(12, _of(SGD)),
    "SGD, momentum": Case(20, _of(SGD, momentum=0.9)),
    "Adam, counted on the device": Case(28, _of(ADAM, capturable=True)),
    "statistics": Case(4, _of(ADAM, max_grad_norm=1.0), kind="statistics"),
    **{
        f"Adam, {name}": Case(
            named.stated,
            _of(ADAM, float32_state="none", **named.settings),
            named.scheme.param,
            named.grad,
        )
        for name, named in NAMED.items()
    },
}


@dataclass(frozen=True)
class Row:
    """Bytes per parameter, of what a tile adds to a launch.

    Attributes:
        moved: in whole sectors, each once for reading and once for writing.
        requested: by threads.
        touched: in whole sectors, each once per request of a warp.
    """

    compiler: str
    case: str
    floor: float
    moved: float
    requested: float
    touched: float


def measure(compiler: str, name: str) -> Row:
    """What the second half of the tiles adds, in the second step of a case."""
    fewer, more = (
        _bytes_of(_watched(compiler, CASES[name], tiles)) for tiles in (TILES, 2 * TILES)
    )
    each = ((b - a) / (TILES * TILE_ELEMENTS) for a, b in zip(fewer, more, strict=True))
    return Row(compiler, name, CASES[name].floor, *each)


def _watched(compiler: str, case: Case, tiles: int) -> Coalescing:
    watched: list[tuple[str, Coalescing]] = []

    def observers(caught: CaughtLaunch, memory: Memory) -> list[Coalescing]:
        watched.append((kind_of(caught.kernel), Coalescing()))
        return [watched[-1][1]]

    param = nn.Parameter(torch.randn(tiles, TILE_ELEMENTS).to(case.dtype))
    optimizer = case.make([param], BACKENDS[compiler](Interpreted(observers=observers)))
    for _ in range(2):
        watched.clear()
        param.grad = torch.randn(param.shape).to(case.grad)
        optimizer.step()
    (found,) = [coalescing for kind, coalescing in watched if kind == case.kind]
    return found


def _bytes_of(found: Coalescing) -> tuple[int, int, int]:
    traffic = found.total("load", "store", "atomic")
    return SECTOR_BYTES * found.distinct_sectors(), traffic.bytes, traffic.sector_bytes


def lines(rows: Iterable[Row]) -> Iterator[str]:
    """The table, as docs have it."""
    yield "| kernel | compiler | must move | moves | threads ask for | warps touch |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        figures = f"{row.moved:.2f} | {row.requested:.2f} | {row.touched:.2f}"
        yield f"| {row.case} | {row.compiler} | {row.floor:g} | {figures} |"


def lines_by_instruction(compiler: str, name: str) -> Iterator[str]:
    """What each instruction of a case asks for and touches."""
    yield f"{name}, {compiler}, {TILES} tiles: requests of warps, bytes asked for, bytes of sectors"
    for (instruction, _), traffic in _watched(compiler, CASES[name], TILES).by_instruction.items():
        yield f"{traffic.requests:7} {traffic.bytes:8} {traffic.sector_bytes:8}  {instruction}"


if __name__ == "__main__":
    if sys.argv[1:]:
        chosen = (lines_by_instruction(compiler, sys.argv[1]) for compiler in BACKENDS)
        print(*(line for found in chosen for line in found), sep="\n")
    else:
        for line in lines(measure(compiler, name) for name in CASES for compiler in BACKENDS):
            print(line)
