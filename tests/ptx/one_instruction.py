"""Tiny kernels for tests: a body between a prologue that loads addresses and `ret`, or one instruction on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .kernel import Kernel
from .lanes import WARP
from .launch import TOGETHER, Launch, Schedule
from .memory import Memory
from .parser import KernelText, read

Array = NDArray[np.generic]

# %i: the thread's number in the grid; %t: in its block; %b: the block's; %a0, %a1, ...: addresses of arrays
_TEXT = """.version 9.0
.target sm_90
.address_size 64
{outside}
.visible .entry kernel({parameters})
.reqntid {threads}, 1, 1
{{
    .reg .pred %p<100>;
    .reg .b16 %h<100>;
    .reg .b32 %r<100>;
    .reg .b32 %t;
    .reg .b32 %b;
    .reg .b32 %i;
    .reg .b64 %d<100>;
    .reg .b64 %a<100>;
{prologue}
{body}
    ret;
}}
"""


def text(body: str, arrays: int = 0, threads: int = WARP, outside: str = "") -> str:
    """A module with one kernel, whose parameters are the addresses of arrays."""
    loads = [f"    ld.param.u64 %a{k}, [p{k}];" for k in range(arrays)]
    numbers = [
        "    mov.u32 %t, %tid.x;",
        "    mov.u32 %b, %ctaid.x;",
        f"    mad.lo.s32 %i, %b, {threads}, %t;",
    ]
    return _TEXT.format(
        outside=outside,
        parameters=", ".join(f".param .u64 p{k}" for k in range(arrays)),
        threads=threads,
        prologue="\n".join([*loads, *numbers]),
        body=body,
    )


def kernel(body: str, arrays: int = 0, **options: object) -> Kernel:
    """The kernel of `text`, decoded."""
    return Kernel(kernel_text(body, arrays, **options))


def kernel_text(body: str, arrays: int = 0, **options: object) -> KernelText:
    return read(text(body, arrays, **options))["kernel"]


def run(
    body: str,
    *arrays: Array,
    threads: int = WARP,
    grid: int = 1,
    written: Sequence[bool] = (),
    outside: str = "",
    schedule: Schedule = TOGETHER,
) -> Launch:
    """Run a body on arrays, in place.

    Args:
        body: its instructions.
        arrays: contiguous; each is a region of its own, so that a byte beyond it is a fault.
        threads: of a block.
        grid: blocks.
        written: by array, whether it holds something; without: all do.
        outside: what the module declares.
        schedule: of the blocks.
    """
    memory = Memory()
    for k, array in enumerate(arrays):
        memory.add_array(f"array {k}", array, is_written=not written or written[k])
    addresses = np.array([array.ctypes.data for array in arrays], np.uint64)
    decoded = kernel(body, len(arrays), threads=threads, outside=outside)
    return Launch(decoded, grid, addresses.tobytes(), memory, schedule=schedule).run()


def apply(opcode: str, result: type, *operands: Array | str) -> Array:
    """What an instruction gives, for each element of its operands.

    Args:
        opcode: with its modifiers.
        result: NumPy's type of the result, or of `bool` for a predicate.
        operands: after the destination: arrays of one shape, of booleans for predicates; or constants as text. Types
            of one byte are in registers of 16 bits, extended as their type is.
    """
    arrays = [np.atleast_1d(x) for x in operands if not isinstance(x, str)]
    count = arrays[0].size if arrays else 1
    padded = -(-count // 128) * 128
    given = [np.resize(x.ravel(), padded) for x in arrays]
    out = np.zeros(padded, np.uint8 if result is bool else result)
    lines, names, number = [], [], 0
    for x in operands:
        if isinstance(x, str):
            names.append(x)
            continue
        lines += _load(number, given[number].dtype)
        names.append(
            ("%p" if arrays[number].dtype.kind == "b" else _letter(given[number])) + str(number)
        )
        number += 1
    destination = "%p99" if result is bool else f"{_letter(out)}99"
    lines.append(f"{opcode} {', '.join([destination, *names])};")
    if result is bool:
        lines.append("selp.u16 %h99, 1, 0, %p99;")
    lines += _at(number, out.dtype)
    lines.append(f"st.global.b{8 * out.itemsize} [%a98], {_letter(out)}99;")
    body = "\n".join(f"    {line}" for line in lines)
    together = Schedule(together=2048)
    run(body, *given, out, threads=128, grid=padded // 128, schedule=together)
    found = out[:count]
    return found.astype(np.bool_) if result is bool else found


def _letter(array: Array) -> str:
    """The registers for a type."""
    return {1: "%h", 2: "%h", 4: "%r", 8: "%d"}[array.dtype.itemsize]


def _at(number: int, dtype: np.dtype) -> list[str]:
    return [f"mul.wide.u32 %a99, %i, {dtype.itemsize};", f"add.s64 %a98, %a{number}, %a99;"]


def _load(number: int, dtype: np.dtype) -> list[str]:
    sign = "s" if dtype.kind == "i" else "u"
    load = f"ld.global.{sign}{8 * dtype.itemsize} {_letter(np.zeros(0, dtype))}{number}, [%a98];"
    to_predicate = [f"setp.ne.s16 %p{number}, %h{number}, 0;"] if dtype.kind == "b" else []
    return [*_at(number, dtype), load, *to_predicate]
