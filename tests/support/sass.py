"""Reads machine code: the kernels in a cubin, and the memory accesses on every path through one.

The tools (cuobjdump, nvdisasm) are those inside the triton package, so no CUDA toolkit is needed.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

_TRITON = importlib.util.find_spec("triton")
BIN = Path(_TRITON.origin).parent / "backends" / "nvidia" / "bin" if _TRITON else Path()

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
# what nvdisasm 12.8 adds to instructions of sm_120, as in "BSYNC B0  &req={1}  ?trans5;"
_SCHEDULING = re.compile(r"\s+[&?]\w[\w={},]*")
_LABEL = re.compile(r"^\s*(\.L_x_\d+|\.text\.\S+):\s*$")
_TARGET = re.compile(r"\.L_x_\d+")
_POINTER_ACCESSES = ("LD", "LDG", "ST", "STG")
# BREAK takes threads out of those that a BSYNC waits for, and goes on.
# opcodes after which the next instruction is not the next in the text, or not the only next
_JUMPS = ("BRA", "BRX", "EXIT", "RET", "BSYNC")
_UNMODELLED = (
    "JMP",
    "JMX",
    "JMXU",
    "BRXU",
    "KILL",
    "CAL",
    "PRET",
    "LDGSTS",
    "UBLKCP",
    "ATOM",
)


def unavailable() -> str:
    """Why the tools cannot be run here, or empty."""
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if not (BIN / tool).is_file()]
    return f"no {' and '.join(missing)}: they come with triton" if missing else ""


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
        """Return what one thread moves by pointer, else 0."""
        if self.name not in _POINTER_ACCESSES:
            return 0
        width = re.search(r"\.[US]?(8|16|64|128|256)\b", self.opcode)
        return int(width[1]) // 8 if width else 4

    @property
    def is_store(self) -> bool:
        return self.name.startswith("ST")


class Accesses(NamedTuple):
    """The traffic by pointer of one thread on one path from a kernel's entry to its exit."""

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
        """Return where execution can go after instruction i. A call returns: subroutines here only compute."""
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
            if instruction.name in _JUMPS or instruction.name in _UNMODELLED:
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

    def wide_accesses(self) -> list[Instruction]:
        return [instruction for instruction in self.instructions if instruction.access_bytes == 16]

    def reachable(self) -> list[Instruction]:
        return [
            self.instructions[i] for instructions, _ in self.blocks.values() for i in instructions
        ]

    @cached_property
    def looping(self) -> set[int]:
        """The basic blocks with accesses by pointer that a thread can run more than once."""
        found = set()
        for start, (instructions, after) in self.blocks.items():
            if not any(self.instructions[i].access_bytes for i in instructions):
                continue
            seen: set[int] = set()
            pending = list(after)
            while pending and start not in seen:
                node = pending.pop()
                if node not in seen:
                    seen.add(node)
                    pending += self.blocks[node][1]
            if start in seen:
                found.add(start)
        return found

    def wide_in_loops(self) -> list[Instruction]:
        """128-bit accesses that a thread can make more than once, so that counting instructions is not enough."""
        accesses = (self.instructions[i] for start in self.looping for i in self.blocks[start][0])
        return [access for access in accesses if access.access_bytes == 16]

    def fewest_instructions(
        self, cost: Callable[[Instruction], int] = lambda _: 1
    ) -> dict[tuple[int, int], int]:
        """By bytes of 128-bit loads and stores outside of loops, what the instructions of a path that moves them cost.

        For each basic block in which the last of the stores may be, the cheapest path through it counts; of those
        that agree in bytes, the dearest. What is called is left out, so that a path of calls seems cheaper than it is.
        """
        totals: dict[int, dict[tuple[int, int, int], int]] = {}
        for node, instructions, after in self._backwards():
            own = _total(self.instructions[i] for i in instructions if node not in self.looping)
            own_cost = sum(cost(self.instructions[i]) for i in instructions)
            rests = [rest for n in after if n in totals for rest in totals[n].items()]
            if not rests or self.instructions[instructions[-1]].name == "EXIT":
                rests.append(((0, 0, -1), 0))
            found: dict[tuple[int, int, int], int] = {}
            for (loads, stores, last), rest_cost in rests:
                if last < 0 and own.store_bytes:
                    last = node
                path = own.load_bytes + loads, own.store_bytes + stores, last
                found[path] = min(found.get(path, own_cost + rest_cost), own_cost + rest_cost)
            totals[node] = found
        dearest: dict[tuple[int, int], int] = {}
        for (loads, stores, _), total in totals[0].items():
            dearest[loads, stores] = max(dearest.get((loads, stores), 0), total)
        return dearest

    def paths(self, with_loops: bool = True) -> set[Accesses]:
        """The distinct totals over all paths from entry to exit; every loop is taken once.

        Without loops nothing counts that is in one, and paths that agree in 128-bit accesses are one, with the most
        narrow accesses of any.
        """
        totals: dict[int, set[Accesses]] = {}
        for node, instructions, after in self._backwards():
            counts = with_loops or node not in self.looping
            own = _total(self.instructions[i] for i in instructions if counts)
            forward = [totals[n] for n in after if n in totals]
            rests = set().union(*forward) if forward else {Accesses()}
            totals[node] = {own.plus(rest) for rest in rests}
            if not with_loops:
                totals[node] = _most_low_precision(totals[node])
        return totals[0]

    def _backwards(self) -> Iterator[tuple[int, range, list[int]]]:
        """Basic blocks, each after all that follow it but those that a back edge leads to."""
        done: set[int] = set()
        on_path: set[int] = set()
        pending = [(0, False)]
        while pending:
            node, is_left = pending.pop()
            instructions, after = self.blocks[node]
            if is_left:
                on_path.discard(node)
                done.add(node)
                yield node, instructions, after
            elif node not in done and node not in on_path:
                on_path.add(node)
                pending.append((node, True))
                pending += [(n, False) for n in after]


def _total(instructions: Iterable[Instruction]) -> Accesses:
    total = Accesses()
    for instruction in instructions:
        size, store = instruction.access_bytes, instruction.is_store
        if size == 16:
            total = total.plus(Accesses(store_bytes=16) if store else Accesses(load_bytes=16))
        elif size:
            total = total.plus(Accesses(narrow_stores=1) if store else Accesses(narrow_loads=1))
    return total


def _most_low_precision(paths: Iterable[Accesses]) -> set[Accesses]:
    most: dict[tuple[int, int], tuple[int, int]] = {}
    for load_bytes, store_bytes, loads, stores in paths:
        others = most.get((load_bytes, store_bytes), (0, 0))
        most[load_bytes, store_bytes] = max(loads, others[0]), max(stores, others[1])
    return {Accesses(*wide, *narrow) for wide, narrow in most.items()}


def parse(text: str) -> dict[str, Kernel]:
    """The kernels in what `nvdisasm -c` prints, by name."""
    kernels: dict[str, Kernel] = {}
    kernel = Kernel("")
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label and label[1].startswith(".text."):
            name = label[1].removeprefix(".text.")
            kernel = kernels[name] = Kernel(name)
        elif label:
            kernel.labels[label[1]] = len(kernel.instructions)
        elif found := _INSTRUCTION.search(_SCHEDULING.sub("", line)):
            kernel.instructions.append(Instruction(found[1] or "", found[2], found[3]))
    return kernels


def disassemble(cubin: Path) -> list[Kernel]:
    """Return the kernels of a cubin, with their resources."""
    kernels = parse(run_tool("nvdisasm", "-c", cubin))
    usage = run_tool("cuobjdump", "--dump-resource-usage", cubin)
    for name, resources in re.findall(r"Function (\S+):\n(.*)", usage):
        found = re.findall(r"([A-Z]+):(\d+)", resources)
        kernels[name].resources = {key: int(value) for key, value in found}
    return list(kernels.values())
