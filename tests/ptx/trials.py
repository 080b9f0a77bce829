"""Tries mutants: what a run executes of a kernel, and which check finds something when the kernel is changed."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from stackelberg_fused import triton_kernels

from . import launch
from .backends import kind_of
from .caught_launch import CaughtLaunch
from .kernel import Kernel
from .lanes import WARP, Fault, Lanes, Mask
from .launch import Observer
from .mutants import UNTESTED, Mutant, copied, mutants
from .shared_runs import RUNS, Watch, check, unchanged

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


class Case(NamedTuple):
    """A mutant of what a compiler emits, and the runs that execute what it changes."""

    compiler: str
    kind: str  # of launch
    mutant: Mutant
    runs: tuple[str, ...]


class _Noting(list[Any]):
    """A list that notes which of its items are read."""

    def __init__(self, items: Sequence[Any]) -> None:
        super().__init__(items)
        self.read: set[int] = set()

    def __getitem__(self, at: Any) -> Any:
        self.read.add(at)
        return super().__getitem__(at)


@dataclass
class Traced:
    """What a run executes of the kernels of one kind of launch.

    Attributes:
        executed, bounds: as in `mutants`, by kernel.
        text: of the module, by kernel.
        instructions: the most of a launch.
    """

    executed: dict[Kernel, set[int]] = field(default_factory=lambda: defaultdict(set))
    bounds: dict[Kernel, set[int]] = field(default_factory=lambda: defaultdict(set))
    text: dict[Kernel, str] = field(default_factory=dict)
    instructions: int = 0


@cache
def traced(run: str, compiler: str, kind: str) -> Traced:
    """Run what a compiler emitted as it is, and note what is executed.

    Raises:
        AssertionError: a check has found something.
    """
    found = Traced()

    def noting(caught: CaughtLaunch) -> Kernel:
        kernel = unchanged(caught)
        if kind_of(caught.kernel) != kind:
            return kernel
        found.text[kernel] = caught.ptx
        noted, counts = copied(kernel), RUNS[run].counts
        items: list[Any] = [
            _comparing(kernel, i, counts, found.bounds[kernel])
            if instruction.base == "setp"
            else kernel.decoded[i]
            for i, instruction in enumerate(kernel.text.instructions)
        ]
        noted.decoded = _Noting(items)
        noted.decoded.read = found.executed[kernel]
        return noted

    result = check(run, compiler, Watch(noting, watched=lambda caught: False))
    assert result.equal, (run, compiler)
    found.instructions = result.instructions
    return found


def _comparing(kernel: Kernel, at: int, counts: set[int], bounds: set[int]) -> Callable[..., None]:
    """A comparison that notes whether it compares with a number of elements."""
    instruction, operation = kernel.text.instructions[at], kernel.decoded[at]
    type_ = instruction.modifiers[-1]
    if type_[0] not in "usb":
        return operation
    readers = [kernel.registers.reader(o, type_) for o in instruction.operands[1:3]]
    wanted = sorted(counts)

    def run(lanes: Lanes, mask: Mask | None) -> None:
        if at not in bounds:
            for values in (read(lanes) for read in readers):
                # the same in a whole warp, as no index is
                by_warp = lanes.full(values).reshape(-1, WARP)
                if values.ndim and any((by_warp == count).all(1).any() for count in wanted):
                    bounds.add(at)
        operation(lanes, mask)

    return run


def cases(
    compiler: str, kind: str, runs: Sequence[str], kinds: Sequence[str] = ()
) -> Iterator[Case]:
    """The mutants of the kernels of a kind of launch that these runs execute.

    Args:
        kinds: of change (default: all).
    """
    executed: dict[Kernel, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    bounds: dict[Kernel, set[int]] = defaultdict(set)
    for run in runs:
        found = traced(run, compiler, kind)
        for kernel, numbers in found.executed.items():
            bounds[kernel] |= found.bounds[kernel]
            for at in numbers:
                executed[kernel][at].append(run)
    for kernel, by_number in executed.items():
        for mutant in mutants(kernel, by_number, bounds[kernel]):
            its_runs = tuple(by_number[mutant.at])
            if mutant.kind == UNTESTED:
                its_runs = tuple(run for run in its_runs if RUNS[run].shift)
            if its_runs and (not kinds or mutant.kind in kinds):
                yield Case(compiler, kind, mutant, its_runs)


def checked(
    case: Case,
    run: str,
    changed: Kernel,
    observers: Callable[[CaughtLaunch], Sequence[Observer]] = lambda caught: (),
) -> str:
    """Which check finds something in a run with another kernel in the place of one; empty: none."""
    kernel = case.mutant.kernel

    def change(caught: CaughtLaunch) -> Kernel:
        found = unchanged(caught)
        return changed if found is kernel else found

    def is_it(caught: CaughtLaunch) -> bool:
        return unchanged(caught) is kernel

    watch = Watch(
        change,
        watched=is_it,
        observers=observers,
        stops_at=lambda race: not race.is_benign,
    )
    most = launch.MOST_INSTRUCTIONS
    launch.MOST_INSTRUCTIONS = LONGEST * traced(run, case.compiler, case.kind).instructions
    try:
        result = check(run, case.compiler, watch)
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


def executed(case: Case, run: str) -> set[int]:
    """Numbers of the instructions that a run executes of the mutant's kernel."""
    return traced(run, case.compiler, case.kind).executed.get(case.mutant.kernel, set())


def source_of(case: Case) -> str:
    """The source of the instruction: "project.py, report_tile: tl.debug_barrier()"; empty: of Triton's library."""
    (text,) = {traced(run, case.compiler, case.kind).text[case.mutant.kernel] for run in case.runs}
    before = "\n".join(text.splitlines()[: case.mutant.instruction.line])
    found = re.findall(r"\.loc.*?// (\w+\.py):(\d+):", before)
    name, line = found[-1] if found else ("", "0")
    source = Path(triton_kernels.__file__).parent / name
    if not source.is_file() or not int(line):
        return ""
    lines = source.read_text().splitlines()[: int(line)]
    functions = [match[1] for above in lines if (match := re.match(r"def (\w+)", above))]
    if not functions:
        return ""
    return f"{name}, {functions[-1]}: {lines[-1].partition('#')[0].strip()}"
