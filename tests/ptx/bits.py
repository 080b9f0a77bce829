"""Bits: logic and shifts (section 9.7.8), bit fields and counts (section 9.7.1), permutation (section 9.7.9)."""

from __future__ import annotations

import numpy as np

from .lanes import UNSIGNED, Lanes, Mask, Registers, Values, dtype_of
from .operations import Compute, Operation, Result, decodes, expect, readers, unknown
from .parser import SIZES, Instruction

LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


def _read_bits(
    instruction: Instruction, registers: Registers, operands: int, *types: str
) -> tuple[str, list[Compute]]:
    """The instruction's type, one of these, and how to read its operands, which have that type."""
    (type_,) = instruction.modifiers
    if type_ not in types:
        raise unknown(instruction)
    return type_, readers(instruction, registers, *[type_] * operands)


@decodes(*LOGIC)
def _logic(instruction: Instruction, registers: Registers) -> Operation:
    _, (a, b) = _read_bits(instruction, registers, 2, "pred", "b16", "b32", "b64")
    compute = LOGIC[instruction.base]
    return Result(instruction, registers, lambda lanes: compute(a(lanes), b(lanes)))


@decodes("not")
def _not(instruction: Instruction, registers: Registers) -> Operation:
    _, (a,) = _read_bits(instruction, registers, 1, "pred", "b16", "b32", "b64")
    return Result(instruction, registers, lambda lanes: np.invert(a(lanes)))


@decodes("shl", "shr")
def _shift(instruction: Instruction, registers: Registers) -> Operation:
    """Amounts beyond the width shift everything out; shr of a signed type fills with the sign.

    Of 16 bits there are 16 here. The ISA leaves it to the machine whether a register holds more (section 9.6.1), which
    shr could bring back; ptxas compiles it as here. Compilers pack a register with something undefined that a shift
    throws away.
    """
    (type_,) = instruction.modifiers
    if type_[0] == "f" or SIZES[type_] < 2 or (instruction.base == "shl" and type_[0] != "b"):
        raise unknown(instruction)
    a, amount = readers(instruction, registers, type_, "u32")
    dtype, width = dtype_of(type_), 8 * SIZES[type_]
    is_left = instruction.base == "shl"
    fills = dtype.kind == "i" and not is_left

    of_x, of_amount = map(registers.sources, instruction.operands[1:])
    destination = registers.number(instruction.operands[0])
    bits = UNSIGNED[SIZES[type_]]
    if registers.sizes[destination] != SIZES[type_]:
        raise unknown(instruction)

    def shifted(x: Values, n: Values) -> Values:
        inside = np.minimum(n, width - 1).astype(dtype)
        moved = x << inside if is_left else x >> inside
        return (moved if fills else np.where(n < width, moved, dtype.type(0))).view(bits)

    def run(lanes: Lanes, mask: Mask | None) -> None:
        x, n = a(lanes), amount(lanes)
        missing = lanes.undefined_bits(*of_x) if lanes.undefined and of_x else None
        if missing is not None:
            missing = shifted(missing.astype(bits).view(dtype), n).astype(np.uint64)
        missing = _all_where_undefined(lanes, of_amount, missing, width)
        lanes.write_by_bits(destination, shifted(x, n), mask, missing)

    return run


def _all_where_undefined(
    lanes: Lanes, sources: tuple[int, ...], missing: Values | None, width: int
) -> Values | None:
    """The undefined bits of a result, which are all of them where what chooses its bits is undefined itself."""
    unknown_choice = lanes.undefined_in(sources)
    if unknown_choice is None:
        return missing
    every = np.uint64(2**width - 1)
    return np.where(unknown_choice, every, np.uint64(0) if missing is None else missing)


def _field(position: Values, length: Values, dtype: np.dtype) -> tuple[Values, Values]:
    """Where a field begins, at most the width; a one in each of as many lower bits as it is long.

    Of both numbers the lower eight bits count (section 9.7.1, bfe and bfi).
    """
    width = 8 * dtype.itemsize
    start, count = (np.minimum(part & np.uint32(0xFF), width) for part in (position, length))
    return start, ~_shifted_left(~dtype.type(0), count)


def _shifted_left(x: Values, amount: Values) -> Values:
    """Zeros where the amount is the width or more."""
    width = 8 * x.dtype.itemsize
    shifted = x << np.minimum(amount, width - 1).astype(x.dtype)
    return np.where(amount < width, shifted, x.dtype.type(0))


@decodes("bfe")
def _extract_field(instruction: Instruction, registers: Registers) -> Operation:
    """`length` bits from `position` on, extended by zeros or, of a signed type, by the field's upper bit."""
    (type_,) = instruction.modifiers
    if type_[0] not in "us" or SIZES[type_] < 4:
        raise unknown(instruction)
    a, position, length = readers(instruction, registers, type_, "u32", "u32")
    bits, width = UNSIGNED[SIZES[type_]], 8 * SIZES[type_]
    is_signed = type_[0] == "s"

    def compute(lanes: Lanes) -> Values:
        x = a(lanes)
        start, ones = _field(position(lanes), length(lanes), bits)
        # beyond the upper bit of x there are copies of it, or zeros
        lower = (x >> np.minimum(start, width - 1).astype(x.dtype)).view(bits)
        if not is_signed:
            return np.where(start < width, lower, bits.type(0)) & ones
        upper_of_field = ones ^ (ones >> bits.type(1))
        is_negative = (lower & upper_of_field) != 0
        return np.where(is_negative, lower | ~ones, lower & ones)

    return Result(instruction, registers, compute)


@decodes("bfi")
def _insert_field(instruction: Instruction, registers: Registers) -> Operation:
    """The lower `length` bits of a in the place of those of b from `position` on."""
    (type_,) = instruction.modifiers
    if type_ not in ("b32", "b64"):
        raise unknown(instruction)
    a, b, position, length = readers(instruction, registers, type_, type_, "u32", "u32")

    def compute(lanes: Lanes) -> Values:
        start, ones = _field(position(lanes), length(lanes), dtype_of(type_))
        replaced = _shifted_left(ones, start)
        return (b(lanes) & ~replaced) | (_shifted_left(a(lanes), start) & replaced)

    return Result(instruction, registers, compute)


@decodes("clz")
def _leading_zeros(instruction: Instruction, registers: Registers) -> Operation:
    type_, (a,) = _read_bits(instruction, registers, 1, "b32", "b64")
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
    type_, (a,) = _read_bits(instruction, registers, 1, "b32", "b64")
    shifts = np.arange(8 * SIZES[type_], dtype=dtype_of(type_))

    def compute(lanes: Lanes) -> Values:
        ones = a(lanes)[..., None] >> shifts & shifts.dtype.type(1)
        return ones.sum(-1).astype(np.uint32)

    return Result(instruction, registers, compute)


@decodes("prmt")
def _permute(instruction: Instruction, registers: Registers) -> Operation:
    """Four bytes of the eight in b:a; the upper bit of a digit of the selector asks for the byte's sign instead.

    Compilers leave an operand undefined of which they take no byte.
    """
    expect(instruction, "b32")
    a, b, selector = readers(instruction, registers, "b32", "b32", "b32")
    of_a, of_b, of_selector = map(registers.sources, instruction.operands[1:])
    destination = registers.number(instruction.operands[0])

    def run(lanes: Lanes, mask: Mask | None) -> None:
        x, y, digits = a(lanes), b(lanes), selector(lanes)
        bits = [lanes.undefined_bits(*of) if of else None for of in (of_a, of_b)]
        missing = None
        if any(of is not None for of in bits):
            missing = _permuted(*(np.uint64(0) if of is None else of for of in bits), digits)
        missing = _all_where_undefined(lanes, of_selector, missing, 32)
        values = _permuted(x, y, digits).astype(np.uint32)
        lanes.write_by_bits(destination, values, mask, missing)

    return run


def _permuted(a: Values, b: Values, selector: Values) -> Values:
    """The lower 32 bits of each as prmt takes them, in 64; of undefined bits those that the result has."""
    lower, eight = np.uint64(0xFFFFFFFF), np.uint64(8)
    both = (a.astype(np.uint64) & lower) | (b.astype(np.uint64) << np.uint64(32))
    digits = selector.astype(np.uint64)
    result = np.zeros(np.broadcast(both, digits).shape, np.uint64)
    for k in range(4):
        digit = digits >> np.uint64(4 * k)
        byte = both >> (eight * (digit & np.uint64(7))) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        result = result | (np.where(digit & eight, sign, byte) << np.uint64(8 * k))
    return result


@decodes("lop3")
def _lookup(instruction: Instruction, registers: Registers) -> Operation:
    """Any function of three bits, by its table of eight results."""
    expect(instruction, "b32")
    if instruction.operands[-1].startswith("%"):
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
