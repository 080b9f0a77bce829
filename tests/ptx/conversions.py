"""Moves and conversions between registers (section 9.7.9: mov, cvta, cvt)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import floating
from .lanes import UNSIGNED, Lanes, Mask, Registers, Values, dtype_of
from .operations import Operation, Result, decodes, expect, readers, unknown
from .parser import SIZES, Instruction, split


@decodes("mov")
def _move(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    destination, source = instruction.operands
    bits = "pred" if type_ == "pred" else f"b{8 * SIZES[type_]}"
    if destination.startswith("{"):
        return _unpack(instruction, registers, split(destination.strip("{} ")), SIZES[type_])
    if source.startswith("{"):
        return _pack(instruction, registers, split(source.strip("{} ")), SIZES[type_])
    (a,) = readers(instruction, registers, bits)
    return Result(instruction, registers, a)


def _pack(instruction: Instruction, registers: Registers, parts: list[str], size: int) -> Operation:
    """The first part becomes the lowest bits."""
    width = 8 * size // len(parts)
    dtype = UNSIGNED[size]
    reads = [registers.reader(part, f"b{width}") for part in parts]

    def compute(lanes: Lanes) -> Values:
        result = dtype.type(0)
        for k, read in enumerate(reads):
            result = result | (read(lanes).astype(dtype) << dtype.type(width * k))
        return result

    return Result(instruction, registers, compute)


def _unpack(
    instruction: Instruction, registers: Registers, parts: list[str], size: int
) -> Operation:
    width = 8 * size // len(parts)
    dtype, part_dtype = UNSIGNED[size], UNSIGNED[size // len(parts)]
    whole = registers.reader(instruction.operands[1], f"b{8 * size}")
    sources = registers.sources(instruction.operands[1])
    numbers = [None if part == "_" else registers.number(part) for part in parts]

    def run(lanes: Lanes, mask: Mask | None) -> None:
        values, undefined = whole(lanes), lanes.undefined_in(sources)
        for k, number in enumerate(numbers):
            if number is not None:
                part = (values >> dtype.type(width * k)).astype(part_dtype)
                lanes.write(number, part, mask, undefined)

    return run


@decodes("cvta")
def _to_generic_or_back(instruction: Instruction, registers: Registers) -> Operation:
    """Addresses in global memory are the same in the generic space (section 5.2.2, 9.7.9 cvta)."""
    expect(instruction, "to", "global", "u64")
    (a,) = readers(instruction, registers, "u64")
    return Result(instruction, registers, a)


@decodes("cvt")
def _convert(instruction: Instruction, registers: Registers) -> Operation:
    *rounding, to, from_ = instruction.modifiers
    (a,) = readers(instruction, registers, from_)
    convert = _conversion(tuple(rounding), to, from_)
    if convert is None:
        raise unknown(instruction)
    size = registers.sizes[registers.number(instruction.operands[0])]
    if size < SIZES[to]:
        raise unknown(instruction)
    # a register wider than the type takes the value's extension
    wide = np.dtype(f"{dtype_of(to).kind}{size}") if to[0] != "f" else dtype_of(to)
    return Result(instruction, registers, lambda lanes: convert(a(lanes)).astype(wide, copy=False))


def _conversion(
    rounding: tuple[str, ...], to: str, from_: str
) -> Callable[[Values], Values] | None:
    dtype = dtype_of(to)
    kinds = from_[0] in "us", to[0] in "us"
    if kinds == (True, True):
        return (lambda x: x.astype(dtype)) if not rounding else None
    if kinds == (True, False):
        return (lambda x: x.astype(dtype)) if rounding == ("rn",) else None
    if kinds == (False, True):
        return (lambda x: floating.to_integer(x, dtype)) if rounding == ("rzi",) else None
    if SIZES[to] > SIZES[from_]:
        return (lambda x: floating.canonical(x.astype(dtype))) if not rounding else None
    if (to, from_) == ("f32", "f64"):
        towards_zero = floating.to_float32_towards_zero
        nearest = lambda x: floating.canonical(x.astype(np.float32))  # noqa: E731
        return {("rn",): nearest, ("rz",): towards_zero}.get(rounding)
    if (to, from_) == ("f16", "f32") and rounding == ("rn",):
        return lambda x: x.astype(np.float16)
    return None
