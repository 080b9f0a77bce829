"""Arithmetic on integers (section 9.7.1) and floating-point numbers (sections 9.7.3 and 9.7.5)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .floating import canonical, fma, from_bfloat16
from .lanes import Lanes, Registers, Values, dtype_of
from .operations import Operation, Result, decodes, readers, unknown
from .parser import SIZES, Instruction

SIGN_BITS = {"f16": 1 << 15, "f32": 1 << 31, "f64": 1 << 63}
SIGN_BITS |= {"bf16": 1 << 15, "f16x2": 1 << 31 | 1 << 15, "bf16x2": 1 << 31 | 1 << 15}
FLOATS = ("f32", "f64", "f32x2")


@decodes("add", "sub")
def _add_or_subtract(instruction: Instruction, registers: Registers) -> Operation:
    *modifiers, type_ = instruction.modifiers
    combine = np.add if instruction.base == "add" else np.subtract
    if modifiers == ["rn", "f32"]:
        return _mixed(instruction, registers, type_, combine)
    if modifiers not in ([], ["rn"]) or (modifiers and type_[0] != "f"):
        raise unknown(instruction)
    if type_ not in FLOATS and (type_[0] not in "us" or SIZES[type_] < 2):
        raise unknown(instruction)
    a, b = readers(instruction, registers, type_, type_)
    compute = in_pairs(combine, type_)
    return Result(instruction, registers, lambda lanes: canonical(compute(a(lanes), b(lanes))))


WIDENED = {"f16": lambda x: x.astype(np.float32), "bf16": from_bfloat16}


def _mixed(
    instruction: Instruction, registers: Registers, type_: str, combine: Callable[..., Values]
) -> Operation:
    """add and sub of float32 whose first operand is made one of 16 bits before, exactly (section 9.7.5)."""
    widened = WIDENED[type_]
    a, c = readers(instruction, registers, type_, "f32")
    return Result(
        instruction, registers, lambda lanes: canonical(combine(widened(a(lanes)), c(lanes)))
    )


def in_pairs(compute: Callable[..., Values], type_: str) -> Callable[..., Values]:
    """The function, applied to both halves of its operands where the type is f32x2."""
    if type_ != "f32x2":
        return compute

    def of_halves(*operands: Values) -> Values:
        halves = [np.atleast_1d(operand).view(np.float32).reshape(-1, 2) for operand in operands]
        result = canonical(compute(*np.broadcast_arrays(*halves)))
        return np.ascontiguousarray(result).view(np.uint64)[:, 0]

    return of_halves


@decodes("mul")
def _multiply(instruction: Instruction, registers: Registers) -> Operation:
    *modifiers, type_ = instruction.modifiers
    a, b = readers(instruction, registers, type_, type_)
    if type_ in FLOATS and modifiers in ([], ["rn"]):
        compute = in_pairs(np.multiply, type_)
        return Result(instruction, registers, lambda lanes: canonical(compute(a(lanes), b(lanes))))
    if type_[0] not in "us" or modifiers not in (["lo"], ["wide"]):
        raise unknown(instruction)
    wide = _wide(type_) if modifiers == ["wide"] else dtype_of(type_)
    return Result(
        instruction, registers, lambda lanes: a(lanes).astype(wide) * b(lanes).astype(wide)
    )


def _wide(type_: str) -> np.dtype:
    return dtype_of(f"{type_[0]}{16 * SIZES[type_]}")


@decodes("mad")
def _multiply_add(instruction: Instruction, registers: Registers) -> Operation:
    modifier, type_ = instruction.modifiers
    if modifier not in ("lo", "wide") or type_[0] not in "us":
        raise unknown(instruction)
    wide = f"{type_[0]}{16 * SIZES[type_]}" if modifier == "wide" else type_
    a, b, c = readers(instruction, registers, type_, type_, wide)
    dtype = dtype_of(wide)

    def compute(lanes: Lanes) -> Values:
        return a(lanes).astype(dtype) * b(lanes).astype(dtype) + c(lanes)

    return Result(instruction, registers, compute)


@decodes("fma")
def _fused_multiply_add(instruction: Instruction, registers: Registers) -> Operation:
    rounding, type_ = instruction.modifiers
    if rounding != "rn" or type_ not in ("f32", "f32x2"):
        raise unknown(instruction)
    a, b, c = readers(instruction, registers, type_, type_, type_)
    compute = in_pairs(fma, type_)
    return Result(instruction, registers, lambda lanes: compute(a(lanes), b(lanes), c(lanes)))


@decodes("div")
def _divide(instruction: Instruction, registers: Registers) -> Operation:
    *modifiers, type_ = instruction.modifiers
    a, b = readers(instruction, registers, type_, type_)
    if type_ in ("f32", "f64") and modifiers == ["rn"]:
        return Result(instruction, registers, lambda lanes: canonical(a(lanes) / b(lanes)))
    if type_[0] not in "us" or modifiers:
        raise unknown(instruction)
    return Result(
        instruction,
        registers,
        lambda lanes: _quotient(a(lanes), b(lanes)),
        lambda lanes: _has_no_quotient(a(lanes), b(lanes)),
    )


@decodes("rem")
def _remainder(instruction: Instruction, registers: Registers) -> Operation:
    """Of negative numbers the ISA leaves it to the machine (section 9.7.1, rem)."""
    (type_,) = instruction.modifiers
    if type_[0] not in "us":
        raise unknown(instruction)
    a, b = readers(instruction, registers, type_, type_)

    def compute(lanes: Lanes) -> Values:
        x, y = a(lanes), b(lanes)
        return x - y * _quotient(x, y)

    def is_open(lanes: Lanes) -> Values:
        x, y = a(lanes), b(lanes)
        return _has_no_quotient(x, y) | (x < 0) | (y < 0)

    return Result(instruction, registers, compute, is_open)


def _has_no_quotient(x: Values, y: Values) -> Values:
    """By zero it is machine-specific (section 9.7.1, div); the least number by -1 is no number of the type.

    Semantics are those of C (section 9.6), where the latter is undefined, as in the compilers that emit it.
    """
    if y.dtype.kind == "u":
        return y == 0
    return (y == 0) | ((x == np.iinfo(x.dtype).min) & (y == -1))


def _quotient(x: Values, y: Values) -> Values:
    """Towards zero; something where there is none."""
    is_zero = y == 0
    divisor = np.where(is_zero, y.dtype.type(1), y)
    below = x // divisor
    rounds_up = (x % divisor != 0) & ((x < 0) != (divisor < 0))
    quotient = below + rounds_up.astype(below.dtype)
    return np.where(is_zero, np.iinfo(y.dtype).max, quotient).astype(y.dtype)


@decodes("sqrt")
def _root(instruction: Instruction, registers: Registers) -> Operation:
    rounding, type_ = instruction.modifiers
    if rounding != "rn" or type_ not in ("f32", "f64"):
        raise unknown(instruction)
    (a,) = readers(instruction, registers, type_)
    return Result(instruction, registers, lambda lanes: canonical(np.sqrt(a(lanes))))


@decodes("min", "max")
def _extreme(instruction: Instruction, registers: Registers) -> Operation:
    *modifiers, type_ = instruction.modifiers
    a, b = readers(instruction, registers, type_, type_)
    is_max = instruction.base == "max"
    if type_[0] != "f":
        if modifiers or type_[0] not in "us":
            raise unknown(instruction)
        compute = np.maximum if is_max else np.minimum
        return Result(instruction, registers, lambda lanes: compute(a(lanes), b(lanes)))
    if modifiers not in ([], ["NaN"]) or type_ not in ("f32", "f64"):
        raise unknown(instruction)

    def of_floats(lanes: Lanes) -> Values:
        """Of NaN and a number the number, or with .NaN a NaN; -0 is less than +0."""
        x, y = np.broadcast_arrays(a(lanes), b(lanes))
        takes_x = (x > y) if is_max else (x < y)
        ties = (x == y) & (np.signbit(y) if is_max else np.signbit(x))
        larger = np.where(takes_x | ties | np.isnan(y), x, y)
        if modifiers:
            larger = np.where(np.isnan(x) | np.isnan(y), x.dtype.type(np.nan), larger)
        return canonical(larger)

    return Result(instruction, registers, of_floats)


@decodes("neg", "abs")
def _sign(instruction: Instruction, registers: Registers) -> Operation:
    """Of floating-point numbers only the sign bit changes; which NaN abs and neg make of NaN the ISA leaves open."""
    (type_,) = instruction.modifiers
    is_neg = instruction.base == "neg"
    if type_ in SIGN_BITS:
        bits = f"b{8 * SIZES[type_]}"
        (a,) = readers(instruction, registers, bits)
        signs = np.array(SIGN_BITS[type_], dtype_of(bits))
        if is_neg:
            return Result(instruction, registers, lambda lanes: a(lanes) ^ signs)
        return Result(instruction, registers, lambda lanes: a(lanes) & ~signs)
    if type_ not in ("s16", "s32", "s64"):
        raise unknown(instruction)
    (a,) = readers(instruction, registers, type_)
    return Result(
        instruction, registers, lambda lanes: (np.negative if is_neg else np.abs)(a(lanes))
    )
