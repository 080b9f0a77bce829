"""Mutants of the kernels that compilers emit: one instruction each is dropped, weakened, changed or moved.

`python -m ptx.mutations` (or `make ptx-mutants`) prints, for every kernel and kind of mutant, how many were made, which
check caught how many, and those that nothing caught. Only instructions that a run executes are changed.
"""

from __future__ import annotations

import copy
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from . import launch
from .accesses import MemoryOperation
from .backends import kind_of
from .caught_launch import CaughtLaunch
from .kernel import Barrier, Fence, Kernel, WarpBarrier
from .lanes import WARP, Fault, Lanes, Mask
from .parser import Instruction
from .shared_runs import COMPILERS, COUNTS, RUNS, check, unchanged

# runs whose mutants are made, and the kernels of each
MUTATED = {
    "clip": ("statistics",),
    "clip, special": ("statistics",),
    "clip, shifted": ("statistics", "step"),
    "counted": ("step",),
    "turns": ("step",),
    "ball": ("step", "project"),
    "simplex": ("project",),
    "8bit": ("step",),
    "8bit, shifted": ("step",),
    "8bit, zeroing": ("step",),
    "everything": ("step",),
}
UNTESTED = "alignment not tested"  # changes nothing where all is aligned
# what a fault says, by the check that it is of
CHECKS = {
    "not aligned": "alignment",
    "in no buffer": "bounds",
    "may only read": "bounds",
    "shared memory": "bounds",
    "parameter bytes": "bounds",
    "undefined": "undefined",
    "nothing has written": "undefined",
    "wait": "deadlock",
    "does not end": "endless",
}
LONGEST = 8  # times the instructions of the kernel as it is, before a mutant counts as endless


@dataclass(frozen=True)
class Mutant:
    """A change of one kernel.

    Attributes:
        kind: of the change.
        at: the instruction's number.
        instruction: what is changed.
        apply: makes the change in a copy of the kernel.
    """

    kind: str
    at: int
    instruction: Instruction
    apply: Callable[[Kernel], None]

    def __str__(self) -> str:
        return f"{self.kind}: {self.instruction}"


class _Noting(list[Any]):
    """A list that notes which of its items are read."""

    def __init__(self, items: Sequence[Any]) -> None:
        super().__init__(items)
        self.read: set[int] = set()

    def __getitem__(self, at: Any) -> Any:
        self.read.add(at)
        return super().__getitem__(at)


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


def mutants(
    kernel: Kernel, executed: set[int], ragged: set[int], guarded: set[int]
) -> Iterator[Mutant]:
    """The mutants of a kernel.

    Args:
        executed: numbers of the instructions that the run executes.
        ragged: those of comparisons in which something equals the number of elements of a ragged tile.
        guarded: those of accesses whose guard keeps some threads from them.
    """
    for at in sorted(executed):
        operation, instruction = kernel.decoded[at], kernel.text.instructions[at]

        def made(
            kind: str,
            apply: Callable[[Kernel], None],
            at: int = at,
            instruction: Instruction = instruction,
        ) -> Mutant:
            return Mutant(kind, at, instruction, apply)

        if isinstance(operation, Fence):
            yield made("fence dropped", _setting(at, _nothing))
            if operation.is_sequential:
                yield made("fence weakened", _setting(at, Fence(False, operation.scope)))
        elif isinstance(operation, Barrier):
            yield made("barrier dropped", _setting(at, _nothing))
        elif isinstance(operation, WarpBarrier):
            yield made("warp barrier dropped", _setting(at, _nothing))
        elif instruction.base == "atom":
            opcode = instruction.opcode
            if "acq_rel" in opcode:
                weaker = opcode.replace("acq_rel", "relaxed")
                yield made("atom relaxed", _respelled(at, opcode=weaker))
            narrow = opcode.replace(".gpu", "").replace(".global", ".global.cta", 1)
            narrow = re.sub(r"\.global\.cta\.(acq_rel|relaxed)", r".global.\1.cta", narrow)
            yield made("atom of block scope", _respelled(at, opcode=narrow))
        if isinstance(operation, MemoryOperation) and instruction.base in ("ld", "st", "atom"):
            if at in guarded:
                yield made("predicate dropped", _unguarded(at))
            if instruction.base == "st":
                for kind, to in _moves(kernel, at):
                    yield made(kind, _moved(at, to))
        if at in ragged:
            other = {"lt": "le", "ge": "gt", "le": "lt", "gt": "ge"}
            for before, after in other.items():
                if f".{before}." in instruction.opcode:
                    changed = instruction.opcode.replace(f".{before}.", f".{after}.")
                    yield made("bound off by one", _respelled(at, opcode=changed))
        if instruction.base == "and" and instruction.operands[2:] == ("15",):
            operands = (*instruction.operands[:2], "0")
            yield made(UNTESTED, _respelled(at, operands=operands))


def _moves(kernel: Kernel, at: int) -> Iterator[tuple[str, int]]:
    """Places in the same stretch of code on the other side of the next fence, barrier or atomic operation."""
    instructions = kernel.text.instructions
    labels = set(kernel.text.labels.values())
    mine = _registers(instructions[at])
    for kind, step in (("store moved before", -1), ("store moved behind", 1)):
        to = at + step
        # a label at an instruction is in front of it
        while 0 <= to < len(instructions) and max(to, to - step) not in labels:
            if _ends(instructions[to]) or _written(instructions[to]) & mine:
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


def _registers(instruction: Instruction) -> set[str]:
    text = " ".join((*instruction.operands, instruction.guard or ""))
    return set(re.findall(r"%[\w$.]+", text))


def _written(instruction: Instruction) -> set[str]:
    if instruction.base in ("st", "bar", "membar", "fence") or not instruction.operands:
        return set()
    return set(re.findall(r"%[\w$.]+", instruction.operands[0]))


def _copy(kernel: Kernel) -> Kernel:
    found = copy.copy(kernel)
    found.text = copy.copy(kernel.text)
    found.decoded, found.guards = list(kernel.decoded), list(kernel.guards)
    return found


@dataclass
class Traced:
    """What a run executes of the kernels of one kind.

    Attributes:
        kernels: by name.
        executed, ragged, guarded: as in `mutants`, by the kernel's name.
        instructions: the most of a launch.
    """

    kernels: dict[str, Kernel]
    executed: dict[str, set[int]]
    ragged: dict[str, set[int]]
    guarded: dict[str, set[int]]
    instructions: int


@cache
def traced(run: str, compiler: str, kind: str) -> Traced:
    """Run what a compiler emitted as it is, and note what is executed.

    Raises:
        AssertionError: a check has found something.
    """
    found = Traced({}, {}, defaultdict(set), defaultdict(set), 0)

    def noting(caught: CaughtLaunch) -> Kernel:
        kernel = unchanged(caught)
        if kind_of(caught.kernel) != kind:
            return kernel
        found.kernels[kernel.name] = kernel
        noted = _copy(kernel)
        ragged = found.ragged[kernel.name]
        guarded = found.guarded[kernel.name]
        items: list[Any] = list(kernel.decoded)
        for i, instruction in enumerate(kernel.text.instructions):
            if instruction.base == "setp":
                items[i] = _comparing(kernel, i, ragged)
            elif instruction.guard and isinstance(items[i], MemoryOperation):
                items[i] = _guarded(items[i], i, guarded)
        noted.decoded = _Noting(items)
        found.executed[kernel.name] = noted.decoded.read | found.executed.get(kernel.name, set())
        noted.decoded.read = found.executed[kernel.name]
        return noted

    result = check(run, compiler, noting)
    assert result.equal, (run, compiler)
    found.instructions = result.instructions
    return found


def _comparing(kernel: Kernel, at: int, ragged: set[int]) -> Callable[..., None]:
    """A comparison that notes whether it finds something equal to the size of a ragged tile."""
    instruction, operation = kernel.text.instructions[at], kernel.decoded[at]
    type_ = instruction.modifiers[-1]
    if type_[0] not in "usb":
        return operation
    readers = [kernel.registers.reader(o, type_) for o in instruction.operands[1:3]]

    def run(lanes: Lanes, mask: Mask | None) -> None:
        a, b = (lanes.full(read(lanes)) for read in readers)
        # where both are equal the bound decides; a change of it makes no difference elsewhere
        decides = a == b if mask is None else (a == b) & mask
        for values in (a, b):
            # the same in a whole warp, as no index is
            of_count = np.isin(values, COUNTS).reshape(-1, WARP).all(1)
            if (decides & np.repeat(of_count, WARP)).any():
                ragged.add(at)
        operation(lanes, mask)

    return run


def _guarded(operation: MemoryOperation, at: int, kept: set[int]) -> MemoryOperation:
    """An access that notes whether its guard kept anybody from it."""
    if at in kept:  # in an earlier launch
        return operation
    noting = copy.copy(operation)
    kept.add(at)  # unless it is run, and by everybody each time
    everybody = True

    def run(launch: launch.Launch, lanes: Lanes, mask: Mask | None) -> None:
        nonlocal everybody
        everybody &= mask is None
        if everybody:
            kept.discard(at)
        else:
            kept.add(at)
        operation.run(launch, lanes, mask)

    noting.run = run  # type: ignore[method-assign]
    return noting


@dataclass(frozen=True)
class Caught:
    """What became of a mutant; `check` is empty where nothing caught it."""

    compiler: str
    run: str
    kernel: str
    mutant: Mutant
    check: str


def verdict(run: str, compiler: str, kernel: str, mutant: Mutant) -> str:
    """Which check catches a mutant; empty: none."""

    def change(caught: CaughtLaunch) -> Kernel:
        found = unchanged(caught)
        if caught.kernel == kernel:
            found = _copy(found)
            mutant.apply(found)
        return found

    most = launch.MOST_INSTRUCTIONS
    launch.MOST_INSTRUCTIONS = LONGEST * traced(run, compiler, kind_of(kernel)).instructions
    try:
        result = check(run, compiler, change)
    except Fault as fault:
        return next((name for said, name in CHECKS.items() if said in str(fault)), "other fault")
    finally:
        launch.MOST_INSTRUCTIONS = most
    races = [race for _, of_launch in result.races for race in of_launch if not is_allowed(race)]
    if races:
        return "equal stores" if all(race.is_benign for race in races) else "race"
    return "" if result.equal else "values"


def is_allowed(race: Any) -> bool:
    """Races of the kernels as they are.

    Triton stores a tensor to shared memory when other threads need it. Where several threads hold the same element, all
    of them store it, by one instruction. What they store is equal, and the source has no say in it.
    """
    return race.is_benign and race.where == "shared memory" and race.first is race.second


def all_mutants(compiler: str, run: str, kinds: Sequence[str] = ()) -> Iterator[tuple[str, Mutant]]:
    """Names of kernels with the mutants made of them, of some kinds (default: all that change something)."""
    for kind in MUTATED[run]:
        found = traced(run, compiler, kind)
        for name, kernel in found.kernels.items():
            for mutant in mutants(
                kernel, found.executed[name], found.ragged[name], found.guarded[name]
            ):
                if mutant.kind == UNTESTED and not RUNS[run].shift:
                    continue
                if not kinds or mutant.kind in kinds:
                    yield name, mutant


def table(found: Sequence[Caught]) -> str:
    """By compiler, run and kind of mutant: how many were made, caught by which check, and missed."""
    rows: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for one in found:
        key = one.compiler, one.run, kind_of(one.kernel), one.mutant.kind
        rows[key][one.check or "MISSED"] += 1
    lines = ["| compiler | run | kernel | mutant | made | caught by | missed |", "|" + "---|" * 7]
    for key, counts in rows.items():
        caught = ", ".join(f"{n} {name}" for name, n in counts.items() if name != "MISSED")
        made, missed = sum(counts.values()), counts["MISSED"]
        lines.append(f"| {' | '.join(key)} | {made} | {caught} | {missed} |")
    return "\n".join(lines)


def main(wanted: Sequence[str]) -> None:
    """Print the tables of some runs or compilers (default: all), and what was missed."""
    for compiler in COMPILERS:
        for run in MUTATED:
            if (set(wanted) & set(COMPILERS) and compiler not in wanted) or (
                set(wanted) & set(MUTATED) and run not in wanted
            ):
                continue
            found = [
                Caught(compiler, run, kernel, mutant, verdict(run, compiler, kernel, mutant))
                for kernel, mutant in all_mutants(compiler, run)
            ]
            print(table(found))
            missed = [one.mutant for one in found if not one.check]
            print("".join(f"missed: {mutant}\n" for mutant in missed), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
