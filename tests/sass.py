"""Reads machine code: the kernels in a cubin, and the memory accesses on every path through one.

The tools (cuobjdump, nvdisasm) are those inside the triton package, so no CUDA toolkit is needed.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import triton

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"^\s*(\.L_x_\d+|\.text\.\S+):\s*$")
_TARGET = re.compile(r"\.L_x_\d+")
_POINTER_ACCESSES = ("LD", "LDG", "ST", "STG")
# opcodes after which the next instruction is not the next in the text, or not the only next
_JUMPS = ("BRA", "BRX", "EXIT", "RET", "BSYNC")
_UNMODELLED = ("BREAK", "JMP", "JMX", "JMXU", "BRXU", "KILL", "CAL", "PRET", "LDGSTS", "UBLKCP", "ATOM", "ATOMG", "RED")


def run_tool(name: str, *arguments: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(BIN / name), *map(str, arguments)], capture_output=True, text=True, check=True, cwd=cwd
    )
    return done.stdout


@dataclass(frozen=True)
class Instruction:
    guard: str  # predicate, or empty
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def access_bytes(self) -> int:
        """What one thread moves by pointer, else 0."""
        if self.name not in _POINTER_ACCESSES:
            return 0
        width = re.search(r"\.[US]?(8|16|64|128|256)\b", self.opcode)
        return int(width[1]) // 8 if width else 4

    @property
    def is_store(self) -> bool:
        return self.name.startswith("ST")


class Accesses(NamedTuple):
    """What one thread moves by pointer on one path from a kernel's entry to its exit."""

    load_bytes: int = 0  # by 128-bit loads
    store_bytes: int = 0  # by 128-bit stores
    narrow_loads: int = 0  # instructions of any other width
    narrow_stores: int = 0

    def plus(self, other: Accesses) -> Accesses:
        return Accesses(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass
class Kernel:
    """One function of a cubin as nvdisasm prints it."""

    name: str
    resources: dict[str, int] = field(default_factory=dict)  # REG, STACK, LOCAL, SHARED, ...
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of the instruction after each

    def count(self, *names: str) -> int:
        return sum(instruction.name in names for instruction in self.instructions)

    def successors(self, i: int) -> list[int]:
        """Where execution can go after instruction i. A call returns: subroutines here only compute."""
        instruction = self.instructions[i]
        if instruction.name in _UNMODELLED:
            raise NotImplementedError(f"{self.name}: {instruction}")
        if instruction.name not in _JUMPS:
            return [i + 1]
        targets = [self.labels[label] for label in _TARGET.findall(instruction.operands)]
        if instruction.name == "BSYNC":
            # threads that have met go on where BSSY said, which must be here or the fall-through means nothing
            barrier = instruction.operands
            met = {
                self.labels[_TARGET.findall(other.operands)[0]]
                for other in self.instructions
                if other.name == "BSSY" and other.operands.partition(",")[0] == barrier
            }
            if i + 1 not in met and i not in met:
                raise NotImplementedError(f"{self.name}: {instruction} does not fall through")
            return [i + 1]
        if instruction.name in ("EXIT", "RET"):
            return [i + 1] if instruction.guard else []
        # a second predicate may stand among the operands: "BRA P0, target", "BRA.U !UP0, target"
        conditional = instruction.guard or re.match(r"!?U?P\d", instruction.operands)
        return [*targets, i + 1] if conditional and instruction.name == "BRA" else targets

    @cached_property
    def blocks(self) -> dict[int, tuple[range, list[int]]]:
        """Basic blocks that the entry reaches: first instruction -> (instructions, first ones of the successors)."""
        starts = {0, *self.labels.values()}
        for i, instruction in enumerate(self.instructions):
            if instruction.name in _JUMPS:
                starts.add(i + 1)
        found: dict[int, tuple[range, list[int]]] = {}
        pending = [0]
        while pending:
            start = pending.pop()
            if start in found:
                continue
            end = start + 1
            while end not in starts and end < len(self.instructions):
                end += 1
            found[start] = range(start, end), self.successors(end - 1)
            pending += found[start][1]
        return found

    def looping(self) -> set[int]:
        """The basic blocks that can be executed more than once."""
        blocks = self.blocks
        loops = set()
        for start in blocks:
            seen: set[int] = set()
            pending = list(blocks[start][1])
            while pending:
                node = pending.pop()
                if node not in seen:
                    seen.add(node)
                    pending += blocks[node][1]
            if start in seen:
                loops.add(start)
        return loops
