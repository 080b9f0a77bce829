"""Bits: logic and shifts (section 9.7.8), bit fields and counts (section 9.7.1), permutation (section 9.7.9)."""

from __future__ import annotations

import numpy as np

from .lanes import UNSIGNED, Lanes, Registers, Values, dtype_of
from .operations import Operation, Result, decodes, expect, readers, unknown
from .parser import SIZES, Instruction

LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@decodes(*LOGIC)
def _logic(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    a, b = readers(instruction, registers, type_, type_)
    compute = LOGIC[instruction.base]
    return Result(instruction, registers, lambda lanes: compute(a(lanes), b(lanes)))


@decodes("not")
def _not(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    (a,) = readers(instruction, registers, type_)
    return Result(instruction, registers, lambda lanes: np.invert(a(lanes)))


@decodes("shl", "shr")
def _shift(instruction: Instruction, registers: Registers) -> Operation:
    """Amounts beyond the width shift everything out; shr of a signed type fills with the sign."""
    (type_,) = instruction.modifiers
    a, amount = readers(instruction, registers, type_, "u32")
    dtype, width = dtype_of(type_), 8 * SIZES[type_]
    is_left = instruction.base == "shl"
    fills = dtype.kind == "i" and not is_left

    def compute(lanes: Lanes) -> Values:
        x, n = a(lanes), amount(lanes)
        inside = np.minimum(n, width - 1).astype(dtype)
        shifted = x << inside if is_left else x >> inside
        return shifted if fills else np.where(n < width, shifted, dtype.type(0))

    return Result(instruction, registers, compute)


@decodes("bfe")
def _extract_field(instruction: Instruction, registers: Registers) -> Operation:
    """`length` bits from `position` on, extended by zeros or, of a signed type, by the field's upper bit."""
    (type_,) = instruction.modifiers
    a, position, length = readers(instruction, registers, type_, "u32", "u32")
    dtype, width = dtype_of(type_), 8 * SIZES[type_]
    bits = UNSIGNED[SIZES[type_]]

    def compute(lanes: Lanes) -> Values:
        x = a(lanes)
        start, count = (part(lanes) & np.uint32(0xFF) for part in (position, length))
        lower = np.where(
            start < width, x >> np.minimum(start, width - 1).astype(dtype), dtype.type(0)
        )
        field = np.where(count < width, lower.view(bits) & ((bits.type(1) << np.minimum(count, width - 1).astype(bits)) - bits.type(1)), lower.view(bits))  # fmt: skip
        if dtype.kind == "u":
            return field
        # the sign is the field's upper bit, or that of x if the field reaches beyond it
        last = np.minimum(start.astype(np.int64) + count - 1, width - 1)
        negative = (count > 0) & (
            (x.view(bits) >> np.maximum(last, 0).astype(bits)) & bits.type(1)
        ).astype(bool)
        above = np.where(
            count < width, ~bits.type(0) << np.minimum(count, width - 1).astype(bits), bits.type(0)
        )
        return np.where(negative, field | above, field)

    return Result(instruction, registers, compute)


@decodes("bfi")
def _insert_field(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    a, b, position, length = readers(instruction, registers, type_, type_, "u32", "u32")
    dtype, width = dtype_of(type_), 8 * SIZES[type_]

    def compute(lanes: Lanes) -> Values:
        start, count = (part(lanes) & np.uint32(0xFF) for part in (position, length))
        ones = np.where(
            count < width,
            (dtype.type(1) << np.minimum(count, width - 1).astype(dtype)) - dtype.type(1),
            ~dtype.type(0),
        ).astype(dtype)
        shift = np.minimum(start, width - 1).astype(dtype)
        field = np.where(start < width, ones << shift, dtype.type(0)).astype(dtype)
        return (b(lanes) & ~field) | ((a(lanes) << shift) & field)

    return Result(instruction, registers, compute)


@decodes("clz")
def _leading_zeros(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    (a,) = readers(instruction, registers, type_)
    width = 8 * SIZES[type_]

    def compute(lanes: Lanes) -> Values:
        x, zeros = a(lanes).copy(), np.zeros(np.shape(a(lanes)), np.uint32)
        for step in (32, 16, 8, 4, 2, 1):
            if step >= width:
                continue
            is_small = x < (x.dtype.type(1) << x.dtype.type(width - step))
            zeros = zeros + np.where(is_small, np.uint32(step), np.uint32(0))
            x = np.where(is_small, x << x.dtype.type(step), x)
        return zeros + (x == 0).astype(np.uint32)

    return Result(instruction, registers, compute)


@decodes("popc")
def _count_ones(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    (a,) = readers(instruction, registers, type_)
    shifts = np.arange(8 * SIZES[type_], dtype=dtype_of(type_))

    def compute(lanes: Lanes) -> Values:
        ones = a(lanes)[..., None] >> shifts & shifts.dtype.type(1)
        return ones.sum(-1).astype(np.uint32)

    return Result(instruction, registers, compute)


@decodes("prmt")
def _permute(instruction: Instruction, registers: Registers) -> Operation:
    """Four bytes of the eight in b:a; the upper bit of a digit of the selector asks for the byte's sign instead."""
    expect(instruction, "b32")
    a, b, selector = readers(instruction, registers, "b32", "b32", "b32")

    def compute(lanes: Lanes) -> Values:
        x, y, digits = np.broadcast_arrays(a(lanes), b(lanes), selector(lanes))
        both = x.astype(np.uint64) | (y.astype(np.uint64) << np.uint64(32))
        result = np.zeros(both.shape, np.uint32)
        for k in range(4):
            digit = digits >> np.uint32(4 * k)
            byte = (both >> (np.uint64(8) * (digit & np.uint32(7)))).astype(np.uint32) & np.uint32(
                0xFF
            )
            sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
            byte = np.where(digit & np.uint32(8), sign, byte)
            result |= byte << np.uint32(8 * k)
        return result

    return Result(instruction, registers, compute)


@decodes("lop3")
def _lookup(instruction: Instruction, registers: Registers) -> Operation:
    """Any function of three bits, by its table of eight results."""
    expect(instruction, "b32")
    if not instruction.operands[-1].isdigit():
        raise unknown(instruction)
    a, b, c, table = readers(instruction, registers, "b32", "b32", "b32", "u32")

    def compute(lanes: Lanes) -> Values:
        x, y, z = np.broadcast_arrays(a(lanes), b(lanes), c(lanes))
        result = np.zeros(x.shape, np.uint32)
        for row in range(8):
            if int(table(lanes)) >> row & 1:
                result |= (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z)
        return result

    return Result(instruction, registers, compute)
