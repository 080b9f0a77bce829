"""The registers of threads that run together, one array of lanes each, and which lanes of them are undefined.

A register holds raw bits: unsigned integers of its width, or booleans. Arrays are never written in place, so that they
may be shared. What nobody has written is undefined: it may be copied and computed with, as compilers do with values
that they throw away, and becomes a fault where it decides something (`demand`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .parser import SIZES, KernelText, NotUnderstood

Values = NDArray[np.generic]
Mask = NDArray[np.bool_]
Reader = Callable[["Lanes"], Values]

# raw bits by size in bytes
UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)} | {0: np.dtype(np.bool_)}
WARP = 32  # threads


class Fault(Exception):
    """A kernel did what it must not do. The message names the instruction."""


@cache
def dtype_of(type_: str) -> np.dtype:
    """NumPy's type of a PTX type (section 5.2.1): bits are unsigned integers."""
    if type_ == "pred":
        return np.dtype(np.bool_)
    if type_.endswith("x2") or type_ == "bf16":  # two numbers in a register; NumPy has no bfloat16
        return UNSIGNED[SIZES[type_]]
    kind = {"b": "u", "u": "u", "s": "i", "f": "f"}[type_[0]]
    return np.dtype(f"{kind}{SIZES[type_]}")


class Lanes:
    """Threads that run together.

    Attributes:
        count: of the threads.
        values: of registers, by their number; None: never written.
        undefined: lanes whose value is undefined, by register; absent: none.
        undefined_parts: which bits of these are, by register, where it is not all; 0: all.
        special: values of the special registers (section 10) by name.
        block: of each thread, its number in the grid.
        warp: of each thread, its number in the grid.
        thread: of each thread, its number in the grid.
    """

    def __init__(
        self,
        blocks: NDArray[np.int64],
        threads: NDArray[np.int64],
        block_threads: int,
        grid: int,
        registers: int,
    ):
        """Take the threads `threads` (numbers within their block) of the blocks `blocks`, arrays of equal length."""
        self.count = len(threads)
        self.values: list[Values | None] = [None] * registers
        self.undefined: dict[int, Mask] = {}
        self.undefined_parts: dict[int, Values] = {}
        self.block = blocks
        self.thread = blocks * block_threads + threads
        self.warp = blocks * -(-block_threads // WARP) + threads // WARP
        self.lane = threads % WARP
        self.everyone = np.ones(self.count, np.bool_)
        zero = np.zeros(self.count, np.uint32)
        self.special: dict[str, Values] = {
            "%tid.x": threads.astype(np.uint32),
            "%ctaid.x": blocks.astype(np.uint32),
            "%ntid.x": np.full(self.count, block_threads, np.uint32),
            "%nctaid.x": np.full(self.count, grid, np.uint32),
            "%laneid": self.lane.astype(np.uint32),
            **dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z"), zero),
            **dict.fromkeys(("%ntid.y", "%ntid.z", "%nctaid.y", "%nctaid.z"), zero + 1),
        }

    def full(self, values: Values) -> Values:
        """One value for each lane."""
        return values if values.ndim else np.broadcast_to(values, (self.count,))

    def write(
        self,
        register: int,
        values: Values,
        mask: Mask | None,
        undefined: Mask | None,
        parts: Values | None = None,
    ) -> None:
        """Write raw bits to the lanes of a mask (None: all); those of `undefined` become so, or these bits of them."""
        if mask is None:
            self.values[register] = self.full(values)
            missing = undefined
        else:
            old = self.values[register]
            if old is None:
                old, missing = np.zeros(self.count, values.dtype), ~mask
            else:
                missing = self.undefined.get(register)
                missing = None if missing is None else missing & ~mask
            self.values[register] = np.where(mask, values, old)
            if undefined is not None:
                missing = undefined & mask if missing is None else missing | (undefined & mask)
        if missing is not None and missing.any():
            self.undefined[register] = missing
        elif self.undefined:
            self.undefined.pop(register, None)
        if parts is not None or register in self.undefined_parts:
            before = self.undefined_parts.get(register, 0)
            parts = np.zeros(self.count, np.uint64) if parts is None else parts
            self.undefined_parts[register] = (
                parts if mask is None else np.where(mask, parts, before)
            )

    def write_by_bits(
        self, register: int, values: Values, mask: Mask | None, undefined: Values | None
    ) -> None:
        """Write raw bits, of which these are undefined (uint64); None: none."""
        if undefined is None or not undefined.any():
            self.write(register, values, mask, None)
        else:
            undefined = self.full(undefined)
            self.write(register, values, mask, undefined != 0, undefined)

    def undefined_bits(self, register: int) -> Values | None:
        """Which bits are undefined, by lane; None: none."""
        missing = self.undefined_in([register])
        if missing is None:
            return None
        every = np.uint64(2**64 - 1)
        parts = self.undefined_parts.get(register, np.zeros(self.count, np.uint64))
        return np.where(missing, np.where(parts == 0, every, parts), np.uint64(0))

    def undefined_in(self, registers: Iterable[int]) -> Mask | None:
        """Lanes in which one of these registers is undefined; None: no lane."""
        found: Mask | None = None
        for register in registers:
            if self.values[register] is None:
                return self.everyone
            missing = self.undefined.get(register)
            if missing is not None:
                found = missing if found is None else found | missing
        return found

    def demand(self, registers: Iterable[int], mask: Mask | None, what: str) -> None:
        """Have these registers defined in the lanes of a mask.

        Raises:
            Fault: one of them is not.
        """
        missing = self.undefined_in(registers)
        if missing is not None and (missing if mask is None else missing & mask).any():
            raise Fault(f"{what} is undefined")

    def get(self, register: int) -> Values:
        values = self.values[register]
        if values is None:
            raise KeyError(register)
        return values


class Registers:
    """The numbers of a kernel's registers, and the operands that instructions read."""

    def __init__(self, kernel: KernelText) -> None:
        self._kernel = kernel
        self._numbers: dict[str, int] = {}
        self.sizes: list[int] = []
        self.names: list[str] = []

    def number(self, name: str) -> int:
        """The number of a register."""
        if name not in self._numbers:
            stem = name if name in self._kernel.register_types else re.sub(r"\d+$", "", name)
            if stem not in self._kernel.register_types:
                raise NotUnderstood(f"the register {name}")
            self._numbers[name] = len(self.sizes)
            self.sizes.append(SIZES[self._kernel.register_types[stem]])
            self.names.append(name)
        return self._numbers[name]

    def sources(self, *operands: str) -> tuple[int, ...]:
        """The numbers of the registers among these operands."""
        names = [name for operand in operands for name in re.findall(r"%[\w$.]+", operand)]
        return tuple(self.number(name) for name in names if not is_special(name))

    def reader(self, operand: str, type_: str) -> Reader:
        """How to read an operand as a type: an array of lanes, or of no dimension where it is a constant."""
        dtype = dtype_of(type_)
        if is_special(operand):
            return lambda lanes: lanes.special[operand].astype(UNSIGNED[dtype.itemsize]).view(dtype)
        if operand.startswith("%"):
            return self._register_reader(self.number(operand), dtype, type_)
        constant = self._constant(operand, type_)
        return lambda lanes: constant

    def _register_reader(self, register: int, dtype: np.dtype, type_: str) -> Reader:
        size = self.sizes[register]
        bits = UNSIGNED[SIZES[type_]]

        def read(lanes: Lanes) -> Values:
            values = lanes.values[register]
            if values is None:
                values = lanes.values[register] = np.zeros(lanes.count, UNSIGNED[size])
                lanes.undefined[register] = lanes.everyone
            return values.view(dtype)

        def read_lower(lanes: Lanes) -> Values:
            return read_all(lanes).astype(bits).view(dtype)

        if size == SIZES[type_]:
            return read
        if size < SIZES[type_] or type_ == "pred":
            raise NotUnderstood(f"{type_} of the register {self.names[register]}")
        read_all = self._register_reader(register, UNSIGNED[size], f"b{8 * size}")
        return read_lower

    def _constant(self, operand: str, type_: str) -> Values:
        """A literal (section 4.5), or the address of a variable: in shared memory, or of a parameter."""
        size = SIZES[type_]
        if operand in self._kernel.shared:
            bits = self._kernel.shared[operand]
        elif operand in self._kernel.parameters:
            bits = self._kernel.parameters[operand][0]
        elif (number := _NUMBER.fullmatch(operand)) is None:
            raise NotUnderstood(f"the operand {operand}")
        elif number["floating"]:  # it gives all bits of float32 (0f) or float64 (0d)
            bits = int(number["floating"], 16)
            if type_[0] not in "bf" or 2 * size != len(number["floating"]):
                raise NotUnderstood(f"{type_} of {operand}")
        elif type_[0] == "f":
            raise NotUnderstood(f"{type_} of the integer {operand}")
        else:
            octal = re.fullmatch(r"(-?)0([0-7]+)", number["integer"])
            bits = int("".join(octal.groups()), 8) if octal else int(number["integer"], 0)
        if type_ == "pred":
            return np.array(bool(bits))
        return np.array(bits % 2 ** (8 * size), UNSIGNED[size]).view(dtype_of(type_))


# section 4.5: integers of base 16, 2, 8 and 10; the bits of floating-point numbers
_NUMBER = re.compile(
    r"(?P<integer>-?(?:0[xX][0-9a-fA-F]+|0[bB][01]+|0[0-7]+|[1-9]\d*|0))U?"
    r"|0(?:[fF](?=[0-9a-fA-F]{8}$)|[dD](?=[0-9a-fA-F]{16}$))(?P<floating>[0-9a-fA-F]+)"
)
SPECIAL = re.compile(r"%(tid|ntid|ctaid|nctaid)\.[xyz]|%laneid")


def is_special(operand: str) -> bool:
    return SPECIAL.fullmatch(operand) is not None
