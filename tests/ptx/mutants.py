"""Mutants of kernels: one instruction is dropped, weakened, changed or moved."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .accesses import MemoryOperation
from .kernel import Barrier, Fence, Kernel, WarpBarrier
from .lanes import Lanes, Mask
from .parser import Instruction

UNTESTED = "alignment not tested"  # changes nothing where all is aligned
UNGUARDED = "predicate dropped"
OFF_BY_ONE = "bound off by one"
WEAKENED = "fence weakened"
NO_BARRIER = "barrier dropped"


@dataclass(frozen=True)
class Mutant:
    """A change of one kernel.

    Attributes:
        kind: of the change.
        kernel: which is changed.
        at: the instruction's number.
        instruction: what is changed.
        apply: makes the change in a copy of the kernel.
    """

    kind: str
    kernel: Kernel
    at: int
    instruction: Instruction
    apply: Callable[[Kernel], None]

    def __str__(self) -> str:
        return f"{self.kind}: {self.instruction}"

    def changed(self) -> Kernel:
        """The kernel with the change."""
        found = copied(self.kernel)
        self.apply(found)
        return found


def copied(kernel: Kernel) -> Kernel:
    """A copy whose instructions may be replaced."""
    found = copy.copy(kernel)
    found.text = copy.copy(kernel.text)
    found.decoded, found.guards = list(kernel.decoded), list(kernel.guards)
    return found


def _nothing(lanes: Lanes, mask: Mask | None) -> None:
    """In the place of an instruction that is dropped."""


def _setting(at: int, operation: Any) -> Callable[[Kernel], None]:
    def apply(kernel: Kernel) -> None:
        kernel.decoded[at] = operation

    return apply


def _respelled(at: int, **changes: Any) -> Callable[[Kernel], None]:
    def apply(kernel: Kernel) -> None:
        kernel.decoded[at] = kernel.decode(replace(kernel.text.instructions[at], **changes))

    return apply


def _unguarded(at: int) -> Callable[[Kernel], None]:
    def apply(kernel: Kernel) -> None:
        kernel.guards[at] = None

    return apply


def _moved(at: int, to: int) -> Callable[[Kernel], None]:
    """Move an instruction to the place of another one, those between them by one."""

    def apply(kernel: Kernel) -> None:
        kernel.text.instructions = list(kernel.text.instructions)
        for items in (kernel.text.instructions, kernel.decoded, kernel.guards):
            items.insert(to, items.pop(at))

    return apply


def mutants(kernel: Kernel, executed: Collection[int], bounds: Collection[int]) -> Iterator[Mutant]:
    """The mutants of a kernel.

    Args:
        executed: numbers of the instructions that are changed.
        bounds: those of comparisons with a number of elements.
    """
    for at in sorted(executed):
        instruction = kernel.text.instructions[at]
        for kind, apply in (
            *_weaker_order(kernel, at),
            *_other_accesses(kernel, at),
            *_other_limits(kernel, at, at in bounds),
        ):
            yield Mutant(kind, kernel, at, instruction, apply)


Changes = Iterator[tuple[str, Callable[[Kernel], None]]]


def _weaker_order(kernel: Kernel, at: int) -> Changes:
    operation, opcode = kernel.decoded[at], kernel.text.instructions[at].opcode
    if isinstance(operation, Fence):
        yield "fence dropped", _setting(at, _nothing)
        if operation.is_sequential:
            yield WEAKENED, _setting(at, Fence(False, operation.scope))
    elif isinstance(operation, Barrier):
        yield NO_BARRIER, _setting(at, _nothing)
    elif isinstance(operation, WarpBarrier):
        yield "warp barrier dropped", _setting(at, _nothing)
    elif kernel.text.instructions[at].base == "atom":
        if "acq_rel" in opcode:
            weaker = opcode.replace("acq_rel", "relaxed")
            yield "atom relaxed", _respelled(at, opcode=weaker)
        narrow = opcode.replace(".gpu", "").replace(".global", ".global.cta", 1)
        narrow = re.sub(r"\.global\.cta\.(acq_rel|relaxed)", r".global.\1.cta", narrow)
        yield "atom of block scope", _respelled(at, opcode=narrow)


def _other_accesses(kernel: Kernel, at: int) -> Changes:
    base = kernel.text.instructions[at].base
    if not isinstance(kernel.decoded[at], MemoryOperation) or base not in ("ld", "st", "atom"):
        return
    if kernel.guards[at] is not None:
        yield UNGUARDED, _unguarded(at)
    if base == "st":
        for kind, to in _moves(kernel, at):
            yield kind, _moved(at, to)


def _other_limits(kernel: Kernel, at: int, is_bound: bool) -> Changes:
    instruction = kernel.text.instructions[at]
    if is_bound:
        for before, after in {"lt": "le", "ge": "gt", "le": "lt", "gt": "ge"}.items():
            if f".{before}." in instruction.opcode:
                changed = instruction.opcode.replace(f".{before}.", f".{after}.")
                yield OFF_BY_ONE, _respelled(at, opcode=changed)
    if instruction.base == "and" and instruction.operands[2:] == ("15",):
        operands = (*instruction.operands[:2], "0")
        yield UNTESTED, _respelled(at, operands=operands)


def _moves(kernel: Kernel, at: int) -> Iterator[tuple[str, int]]:
    """Places in the same stretch of code on the other side of the next fence, barrier or atomic operation."""
    instructions = kernel.text.instructions
    labels = set(kernel.text.labels.values())
    mine = registers(" ".join((*instructions[at].operands, instructions[at].guard or "")))
    for kind, step in (("store moved before", -1), ("store moved behind", 1)):
        to = at + step
        # a label at an instruction is in front of it
        while 0 <= to < len(instructions) and max(to, to - step) not in labels:
            if _ends(instructions[to]) or written(instructions[to]) & mine:
                break
            if _synchronizes(kernel, to, at):
                yield kind, to
                break
            to += step


def _synchronizes(kernel: Kernel, at: int, access: int) -> bool:
    """Whether an instruction orders this access: only barriers do of shared memory."""
    if isinstance(kernel.decoded[at], Barrier):
        return True
    is_atomic = kernel.text.instructions[at].base == "atom"
    is_shared = "shared" in kernel.text.instructions[access].opcode
    return not is_shared and (is_atomic or isinstance(kernel.decoded[at], Fence))


def _ends(instruction: Instruction) -> bool:
    return instruction.base in ("bra", "brx", "ret", "exit")


def registers(text: str) -> set[str]:
    """The registers that a text names."""
    return set(re.findall(r"%[\w$.]+", text))


def written(instruction: Instruction) -> set[str]:
    """The registers that an instruction writes."""
    if instruction.base in ("st", "bar", "membar", "fence") or not instruction.operands:
        return set()
    return registers(instruction.operands[0])
