"""Comparison and selection (section 9.7.6)."""

from __future__ import annotations

import numpy as np

from .lanes import Lanes, Registers, Values
from .operations import Operation, Result, Selection, decodes, expect, readers, unknown
from .parser import SIZES, Instruction

COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
# of unsigned integers: lower, the same, higher
OF_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


@decodes("setp")
def _compare(instruction: Instruction, registers: Registers) -> Operation:
    """Of floating-point numbers NaN makes a comparison false, or true where its name ends with u."""
    if len(instruction.modifiers) != 2:
        raise unknown(instruction)
    name, type_ = instruction.modifiers
    if type_ in ("pred", "b8", "u8", "s8", "f16", "bf16", "f32x2"):
        raise unknown(instruction)
    if type_[0] == "b" and name not in ("eq", "ne"):
        raise unknown(instruction)
    if type_[0] == "u":
        name = OF_UNSIGNED.get(name, name)
    a, b = readers(instruction, registers, type_, type_)
    unordered = type_[0] == "f" and name.endswith("u")
    ordering = COMPARISONS.get(name.removesuffix("u") if unordered else name)
    if type_[0] == "f" and name in ("nan", "num"):
        return Result(instruction, registers, _has_nan(a, b, wanted=name == "nan"))
    if ordering is None:
        raise unknown(instruction)
    if type_[0] != "f":
        return Result(instruction, registers, lambda lanes: ordering(a(lanes), b(lanes)))
    has_nan = _has_nan(a, b, wanted=True)

    def compute(lanes: Lanes) -> Values:
        found = ordering(a(lanes), b(lanes))
        if unordered:
            return found | has_nan(lanes)
        return found & ~has_nan(lanes) if name == "ne" else found

    return Result(instruction, registers, compute)


def _has_nan(a, b, *, wanted: bool):
    return lambda lanes: (np.isnan(a(lanes)) | np.isnan(b(lanes))) == wanted


@decodes("selp")
def _select(instruction: Instruction, registers: Registers) -> Operation:
    (type_,) = instruction.modifiers
    bits = f"b{8 * SIZES[type_]}"
    if SIZES[type_] < 2:
        raise unknown(instruction)
    a, b, choice = readers(instruction, registers, bits, bits, "pred")
    return Selection(instruction, registers, choice, a, b)


@decodes("slct")
def _select_by_sign(instruction: Instruction, registers: Registers) -> Operation:
    """The first operand where the third is not negative."""
    expect(instruction, "f32", "b32", "u32", "s32")
    if len(instruction.modifiers) != 2 or instruction.modifiers[-1] != "s32":
        raise unknown(instruction)
    a, b, sign = readers(instruction, registers, "b32", "b32", "s32")
    return Selection(instruction, registers, lambda lanes: sign(lanes) >= 0, a, b)
