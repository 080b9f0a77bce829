"""What the text of a module becomes: kernels with their instructions."""

from __future__ import annotations

from dataclasses import dataclass, field

# bytes of the types of section 5.2.1; a predicate has no size in memory
SIZES = {
    f"{letter}{bits}": bits // 8
    for letter, widths in {"b": (8, 16, 32, 64), "u": (8, 16, 32, 64), "s": (8, 16, 32, 64), "f": (16, 32, 64)}.items()
    for bits in widths
} | {"pred": 0, "bf16": 2, "f16x2": 4, "bf16x2": 4, "f32x2": 8}  # fmt: skip


class NotUnderstood(Exception):
    """The text holds something that the interpreter does not know. The message names it."""


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: with its modifiers, as it is spelled.
        operands: as they are spelled; a vector is one operand.
        guard: the predicate register that decides which threads execute it; None: all.
        negated: threads execute it where the guard is false.
        line: in the module's text, from 1.
    """

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: int

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        return tuple(self.opcode.split(".")[1:])

    def __str__(self) -> str:
        guard = f"@{'!' if self.negated else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)} (line {self.line})"


@dataclass
class KernelText:
    """An entry of a module.

    Attributes:
        parameters: offset and bytes by name.
        parameter_bytes: of all.
        threads: of a block, by .reqntid or .maxntid; None if the text does not say.
        shared: offset by name, of the variables in shared memory that the kernel names.
        shared_bytes: of all whose size is known; an external array, if any, begins there.
        instructions: in the order of the text.
        labels: the index of the instruction that follows each.
        targets: labels by the name of their list (.branchtargets).
        register_types: by the name without its number.
    """

    name: str
    parameters: dict[str, tuple[int, int]]
    parameter_bytes: int
    threads: int | None
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    targets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    register_types: dict[str, str] = field(default_factory=dict)


def split(text: str) -> list[str]:
    """The parts between commas outside of brackets, without spaces around them."""
    parts, depth, part = [], 0, ""
    for letter in text:
        depth += {"[": 1, "{": 1, "(": 1, "]": -1, "}": -1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += letter
    return [*parts, part.strip()] if part.strip() else parts
