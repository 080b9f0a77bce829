"""A launch as a GPU would get it: the PTX of a module, a kernel in it, and the bytes of the arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple


class Region(NamedTuple):
    """Memory of the host that a launch may reach.

    Attributes:
        name: as "records", or "exp_avg[3]" of the slot 3 of a table.
        address, nbytes: where it lies.
        writable: whether the launch may also write there.
    """

    name: str
    address: int
    nbytes: int
    writable: bool


class Param(NamedTuple):
    """A parameter of a kernel, in bytes from the start of its block of parameters."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class CaughtLaunch:
    """One launch, which nothing has executed yet.

    Attributes:
        compiler: "nvcc" or "triton".
        ptx: text of the module; the same object for every launch of a module.
        kernel: name of the entry in it.
        grid: blocks.
        threads: of a block.
        params: the arguments, laid out as the entry declares its parameters.
        dynamic_shared: bytes of shared memory beside what the module declares with a size.
        regions: what the launch may reach, see `regions.py`.
        arguments: of a Triton kernel by name, those included that the compiler took for constants; to look at.
        passed: the names of those that `params` holds, in their order.
    """

    compiler: str
    ptx: str
    kernel: str
    grid: int
    threads: int
    params: bytes
    dynamic_shared: int = 0
    regions: tuple[Region, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    passed: tuple[str, ...] = ()


Executor = Callable[[CaughtLaunch], None]

_ENTRY = re.compile(r"\.entry\s+([\w$.]+)\s*\(([^)]*)\)")
_BYTES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "b32": 4, "u32": 4}
_BYTES |= {"s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}
# `.param .align 8 .b8 name[176]` or `.param .u64 .ptr .global .align 16 name`
_PARAM = re.compile(
    r"\.param\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?:\.(?:ptr|global|align)\s*\d*\s*)*"
    r"(?P<name>[\w$]+)\s*(?:\[(?P<count>\d+)\])?\s*$"
)


@lru_cache(maxsize=64)
def params_of(ptx: str) -> dict[str, tuple[Param, ...]]:
    """The parameters of every entry of a module, by its name."""
    return {name: tuple(_laid_out(body)) for name, body in _ENTRY.findall(ptx)}


def _laid_out(declarations: str) -> list[Param]:
    found, end = [], 0
    for declaration in filter(str.strip, declarations.split(",")):
        match = _PARAM.search(declaration.strip())
        assert match, declaration
        size = _BYTES[match["type"]] * int(match["count"] or 1)
        align = int(match["align"] or size)
        offset = -(-end // align) * align
        found.append(Param(match["name"], offset, size))
        end = offset + size
    return found


def packed(params: tuple[Param, ...], values: list[bytes]) -> bytes:
    """The block of parameters with these values; one without a value is zero."""
    block = bytearray(params[-1].offset + params[-1].size)
    for param, value in zip(params, values, strict=False):
        assert len(value) == param.size, (param, value)
        block[param.offset : param.offset + param.size] = value
    return bytes(block)
