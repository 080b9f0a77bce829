"""What an instruction becomes: an operation on lanes. Decoders of all instructions that compute are registered here."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .lanes import UNSIGNED, Lanes, Mask, Registers, Values
from .parser import Instruction, NotUnderstood

Compute = Callable[[Lanes], Values]
Operation = Callable[[Lanes, "Mask | None"], None]
Decoder = Callable[[Instruction, Registers], Operation]

DECODERS: dict[str, Decoder] = {}


def decodes(*bases: str) -> Callable[[Decoder], Decoder]:
    """Register the decoder of instructions by their opcode without modifiers."""

    def register(decoder: Decoder) -> Decoder:
        DECODERS.update(dict.fromkeys(bases, decoder))
        return decoder

    return register


def unknown(instruction: Instruction) -> NotUnderstood:
    """The error for a spelling that the interpreter does not know."""
    return NotUnderstood(f"the instruction {instruction}")


def expect(instruction: Instruction, *allowed: str) -> None:
    """Refuse modifiers other than these."""
    if not set(instruction.modifiers) <= set(allowed):
        raise unknown(instruction)


class Result:
    """Writes what is computed from the registers among the operands into the first operand.

    Args:
        instruction: the instruction.
        registers: of the kernel.
        compute: the result, in as many bytes as the first operand has.
        open_where: lanes whose result the ISA leaves open; None: none. It is undefined there.
    """

    def __init__(
        self,
        instruction: Instruction,
        registers: Registers,
        compute: Compute,
        open_where: Compute | None = None,
    ) -> None:
        destination, *operands = instruction.operands
        self._instruction, self._open_where = instruction, open_where
        self._destination = registers.number(destination)
        self._bits = UNSIGNED[registers.sizes[self._destination]]
        self._sources = registers.sources(*operands)
        self._compute = compute

    def __call__(self, lanes: Lanes, mask: Mask | None) -> None:
        values = self._compute(lanes)
        if values.dtype != self._bits:
            if values.dtype.itemsize != self._bits.itemsize or self._bits == np.bool_:
                raise unknown(self._instruction)
            values = values.view(self._bits)
        undefined = lanes.undefined_in(self._sources) if lanes.undefined else None
        if self._open_where is not None:
            is_open = lanes.full(self._open_where(lanes))
            undefined = is_open if undefined is None else is_open | undefined
        lanes.write(self._destination, values, mask, undefined)


class Selection:
    """As `Result`, of one of two operands: undefined is what the operand chosen is, or the choice."""

    def __init__(
        self,
        instruction: Instruction,
        registers: Registers,
        choose_first: Compute,
        first: Compute,
        second: Compute,
    ) -> None:
        destination, *operands = instruction.operands
        self._destination = registers.number(destination)
        self._bits = UNSIGNED[registers.sizes[self._destination]]
        self._sources = [registers.sources(operand) for operand in operands]
        self._choose_first, self._first, self._second = choose_first, first, second

    def __call__(self, lanes: Lanes, mask: Mask | None) -> None:
        first, second, chosen = self._first(lanes), self._second(lanes), self._choose_first(lanes)
        undefined = None
        if lanes.undefined:
            of_first, of_second, of_choice = map(lanes.undefined_in, self._sources)
            nothing = np.False_
            undefined = np.where(
                chosen,
                nothing if of_first is None else of_first,
                nothing if of_second is None else of_second,
            ) | (nothing if of_choice is None else of_choice)
            undefined = lanes.full(undefined)
        lanes.write(
            self._destination, np.where(chosen, first, second).view(self._bits), mask, undefined
        )


def readers(instruction: Instruction, registers: Registers, *types: str) -> list[Compute]:
    """How to read the operands after the first as these types."""
    operands = instruction.operands[1:]
    if len(operands) != len(types):
        raise unknown(instruction)
    return [registers.reader(*pair) for pair in zip(operands, types, strict=True)]
