"""Moves and conversions between registers (section 9.7.9: mov, cvta, cvt)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import floating
from .lanes import UNSIGNED, Lanes, Mask, Registers, Values, dtype_of
from .operations import Operation, Result, decodes, readers, unknown
from .parser import SIZES, Instruction, split


@decodes("mov")
def _move(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    destination, source = instruction.operands
    bits = "pred" if type_ == "pred" else f"b{8 * SIZES[type_]}"
    if type_ not in ("pred", "f32", "f64") and (type_[0] not in "bus" or SIZES[type_] < 2):
        raise unknown(instruction)
    if destination.startswith("{"):
        return _unpack(instruction, registers, split(destination.strip("{} ")), SIZES[type_])
    if source.startswith("{"):
        return _pack(instruction, registers, split(source.strip("{} ")), SIZES[type_])
    (a,) = readers(instruction, registers, bits)
    return Result(instruction, registers, a)


def _pack(instruction: Instruction, registers: Registers, parts: list[str], size: int) -> Operation:
    """The first part becomes the lowest bits. Compilers leave a part undefined that they take no bits of."""
    width = 8 * size // len(parts)
    dtype, ones = UNSIGNED[size], 2**width - 1
    reads = [registers.reader(part, f"b{width}") for part in parts]
    sources = [registers.sources(part) for part in parts]
    destination = registers.number(instruction.operands[0])

    def run(lanes: Lanes, mask: Mask | None) -> None:
        values = [read(lanes) for read in reads]
        missing = [lanes.undefined_in(of) for of in sources]
        whole, undefined = dtype.type(0), np.zeros(lanes.count, np.uint64)
        for k, (value, is_missing) in enumerate(zip(values, missing, strict=True)):
            whole = whole | (value.astype(dtype) << dtype.type(width * k))
            if is_missing is not None:
                undefined |= np.where(is_missing, np.uint64(ones << width * k), np.uint64(0))
        lanes.write_by_bits(destination, whole, mask, undefined)

    return run


def _unpack(
    instruction: Instruction, registers: Registers, parts: list[str], size: int
) -> Operation:
    width = 8 * size // len(parts)
    dtype, part_dtype = UNSIGNED[size], UNSIGNED[size // len(parts)]
    if any(part != "_" and registers.sizes[registers.number(part)] * 8 != width for part in parts):
        raise unknown(instruction)
    whole = registers.reader(instruction.operands[1], f"b{8 * size}")
    sources, ones = registers.sources(instruction.operands[1]), np.uint64(2**width - 1)
    numbers = [None if part == "_" else registers.number(part) for part in parts]

    def run(lanes: Lanes, mask: Mask | None) -> None:
        values = whole(lanes)
        undefined = lanes.undefined_bits(*sources) if sources else None
        for k, number in enumerate(numbers):
            if number is None:
                continue
            part = (values >> dtype.type(width * k)).astype(part_dtype)
            missing = None
            if undefined is not None:
                missing = (undefined >> np.uint64(width * k) & ones) != 0
            lanes.write(number, part, mask, missing)

    return run


@decodes("cvta")
def _to_generic_or_back(instruction: Instruction, registers: Registers) -> Operation:
    """Addresses in global memory are the same in the generic space (section 9.7.9, cvta)."""
    if instruction.modifiers not in (("global", "u64"), ("to", "global", "u64")):
        raise unknown(instruction)
    (a,) = readers(instruction, registers, "u64")
    return Result(instruction, registers, a)


@decodes("cvt")
def _convert(instruction: Instruction, registers: Registers) -> Operation:
    *rounding, to, from_ = instruction.modifiers
    convert = _conversion(tuple(rounding), to, from_)
    if convert is None:
        raise unknown(instruction)
    (a,) = readers(instruction, registers, from_)
    size = registers.sizes[registers.number(instruction.operands[0])]
    is_integer = to[0] in "us"
    if size < SIZES[to] or (size > SIZES[to] and not is_integer):
        raise unknown(instruction)
    # a register wider than the type takes the value's extension (section 9.4.1)
    wide = np.dtype(f"{dtype_of(to).kind}{size}") if is_integer else dtype_of(to)
    return Result(instruction, registers, lambda lanes: convert(a(lanes)).astype(wide, copy=False))


def _conversion(
    rounding: tuple[str, ...], to: str, from_: str
) -> Callable[[Values], Values] | None:
    dtype = dtype_of(to)
    is_integer = from_[0] in "us", to[0] in "us"
    if is_integer == (True, True):
        return (lambda x: x.astype(dtype)) if not rounding else None
    if is_integer == (True, False):
        return (lambda x: x.astype(dtype)) if (rounding, to) in INTEGER_TO_FLOAT else None
    if is_integer == (False, True):
        is_known = rounding == ("rzi",) and from_ in ("f32", "f64")
        return (lambda x: floating.to_integer(x, dtype)) if is_known else None
    return BETWEEN_FLOATS.get((*rounding, to, from_))


INTEGER_TO_FLOAT = {(("rn",), "f32"), (("rn",), "f64")}
BETWEEN_FLOATS: dict[tuple[str, ...], Callable[[Values], Values]] = {
    ("f64", "f32"): lambda x: x.astype(np.float64),
    ("f64", "f16"): lambda x: x.astype(np.float64),
    ("f32", "f16"): lambda x: floating.canonical(x.astype(np.float32)),
    ("f32", "bf16"): floating.from_bfloat16,
    ("rn", "f32", "f64"): lambda x: floating.canonical(x.astype(np.float32)),
    ("rz", "f32", "f64"): floating.to_float32_towards_zero,
    ("rn", "f16", "f32"): lambda x: floating.canonical(x.astype(np.float16)),
    ("rn", "bf16", "f32"): floating.to_bfloat16,
}
