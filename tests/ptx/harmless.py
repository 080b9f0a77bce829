"""Why a mutant that no check catches does no harm: each reason is a test of what the mutant does in a run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache

from .accesses import Load, MemoryOperation, Store
from .caught_launch import CaughtLaunch
from .kernel import Barrier, Branch, Exit, Kernel
from .mutants import NO_BARRIER, OFF_BY_ONE, UNGUARDED, WEAKENED, copied, registers, written
from .parser import Instruction
from .probes import Compared, Counting, Poisoned, Reached, Sharing
from .trials import Case, checked, source_of

# what gives the same in every launch, if its operands are the same
CALCULATING = [
    "setp",
    "mov",
    "and",
    "or",
    "xor",
    "not",
    "shl",
    "shr",
    "add",
    "sub",
    "cvt",
    "bfe",
    "selp",
]
OF_THREAD = ("%tid.x", "%laneid", "%ntid.x")


@lru_cache(maxsize=8)
def _poisoned(case: Case) -> int | None:
    """How many threads the predicate keeps back in all runs; None: what these do would matter if it was undefined."""
    mutant, further = case.mutant, 0
    operation, guard = mutant.kernel.decoded[mutant.at], mutant.kernel.guards[mutant.at]
    if not isinstance(operation, Load | Store) or guard is None:
        return None
    for run in case.runs:
        changed = mutant.changed()
        poisoned = Poisoned(operation, guard, mutant.instruction.negated)
        changed.decoded[mutant.at] = poisoned
        if checked(case, run, changed):
            return None
        further += poisoned.further
    return further


def _unused(case: Case) -> bool:
    return bool(_poisoned(case))


def _always_holds(case: Case) -> bool:
    """The predicate has held in every thread, and follows from the thread's number in its block alone."""
    guard = case.mutant.instruction.guard
    return guard is not None and _poisoned(case) == 0 and _is_of_thread(case.mutant.kernel, guard)


def _is_of_thread(kernel: Kernel, register: str) -> bool:
    writers: dict[str, list[Instruction]] = defaultdict(list)
    for instruction in kernel.text.instructions:
        for name in written(instruction):
            writers[name].append(instruction)
    ahead, seen = [register], set[str]()
    while ahead:
        name = ahead.pop()
        if name in seen or name in OF_THREAD:
            continue
        seen.add(name)
        for writer in writers[name]:
            if writer.guard or writer.base not in CALCULATING:
                return False
            ahead += [n for operand in writer.operands[1:] for n in registers(operand)]
        if not writers[name]:
            return False  # of the block, or of nobody
    return True


def _accesses_nothing(case: Case) -> bool:
    """Some runs have threads for which the limit matters, and in all each thread accesses what it did before."""
    mutant, different = case.mutant, 0
    for run in case.runs:
        changed = mutant.changed()
        compared = Compared(mutant.kernel, changed, mutant.at)
        changed.decoded[mutant.at] = compared
        if _accesses(case, run, changed) != _accesses(case, run, copied(mutant.kernel)):
            return False
        different += compared.different
    return different > 0


def _accesses(case: Case, run: str, kernel: Kernel) -> list[dict[int, bytes]]:
    found: list[Counting] = []

    def observers(caught: CaughtLaunch) -> Sequence[Counting]:
        found.append(Counting(caught))
        return found[-1:]

    checked(case, run, kernel, observers)
    return [of_launch.found for of_launch in found]


def _counts_alone(case: Case) -> bool:
    """The nearest atomic operation counts the blocks of a parameter."""
    instructions = case.mutant.kernel.text.instructions
    atoms = [i for i, instruction in enumerate(instructions) if instruction.base == "atom"]
    nearest = instructions[min(atoms, key=lambda i: abs(i - case.mutant.at))]
    return _reaches(case, {"arrived"}, nearest)


def _nothing_between(case: Case) -> bool:
    """On all ways to a barrier there is another one, and no access of shared or global memory behind that."""
    kernel = case.mutant.kernel
    before = _predecessors(kernel)
    ahead, seen = [case.mutant.at], set[int]()
    while ahead:
        here = ahead.pop()
        if here == 0:
            return False  # the kernel begins
        for at in before[here]:
            operation = kernel.decoded[at]
            if (
                isinstance(operation, MemoryOperation)
                and "param" not in operation.instruction.opcode
            ):
                return False
            if not isinstance(operation, Barrier) and at not in seen:
                seen.add(at)
                ahead.append(at)
    return True


def _predecessors(kernel: Kernel) -> dict[int, list[int]]:
    """From which instructions each is reached."""
    found: dict[int, list[int]] = defaultdict(list)
    for at, operation in enumerate(kernel.decoded):
        following = list(operation.targets) if isinstance(operation, Branch) else []
        goes_on = not isinstance(operation, Branch | Exit) or kernel.guards[at] is not None
        for after in (*following, *([at + 1] if goes_on else [])):
            found[after].append(at)
    return found


def _of_no_elements(case: Case) -> bool:
    """Whether a row is empty, or a piece of rows; or a load of the record, where the row is not."""
    mutant = case.mutant
    if case.kind != "project":
        return False

    def writers_of(register: str | None) -> list[Instruction]:
        return [i for i in mutant.kernel.text.instructions if register in written(i)]

    if mutant.kind == OFF_BY_ONE:
        opcode, (_, first, limit) = mutant.instruction.opcode, mutant.instruction.operands
        ends = [(w.opcode, w.operands[1]) for w in writers_of(limit)]
        is_piece = opcode == "setp.ge.s64" and ends == [("add.s64", first)]
        return is_piece or (opcode == "setp.gt.s64" and limit == "0")
    writers = writers_of(mutant.instruction.guard)
    is_length = [w.opcode == "setp.gt.s64" and w.operands[2] == "0" for w in writers]
    return (
        is_length == [True]
        and _poisoned(case) == 0
        and _reaches(case, {"records"}, mutant.instruction)
    )


def _reaches(case: Case, names: set[str], instruction: Instruction) -> bool:
    """An instruction reaches buffers of these names only."""
    found: dict[int, set[str]] = {instruction.line: set()}
    for run in case.runs:
        checked(
            case,
            run,
            case.mutant.changed(),
            lambda caught: [Reached(caught, found)],
        )
    return set() < found[instruction.line] <= names


def _clears_its_own(case: Case) -> bool:
    """Gradients are cleared behind this barrier, each by the only thread that accesses it in a launch."""
    sources = (
        "low_precision.py, _update: tl.debug_barrier()",
        "low_precision.py, _wait: tl.debug_barrier()",
    )
    if case.compiler != "triton" or source_of(case) not in sources:
        return False
    kernel = case.mutant.kernel
    behind = _behind(kernel, case.mutant.at)
    stores = {at for at in behind if isinstance(kernel.decoded[at], Store)}
    lines = {kernel.text.instructions[at].line for at in stores}
    sharing: list[Sharing] = []

    def observers(caught: CaughtLaunch) -> Sequence[Sharing]:
        sharing.append(Sharing(caught, ("grad[", "grad_sum["), lines))
        return sharing[-1:]

    for run in case.runs:
        checked(case, run, case.mutant.changed(), observers)
    stored = sum(of_launch.stored for of_launch in sharing)
    return stored > 0 and not any(of_launch.shared for of_launch in sharing)


def _behind(kernel: Kernel, barrier: int) -> set[int]:
    """The instructions between a barrier and the next ones."""
    after: dict[int, list[int]] = defaultdict(list)
    for at, before in _predecessors(kernel).items():
        for one in before:
            after[one].append(at)
    ahead, seen = [*after[barrier]], set[int]()
    while ahead:
        at = ahead.pop()
        if at not in seen and not isinstance(kernel.decoded[at], Barrier):
            seen.add(at)
            ahead += after[at]
    return seen


def _orders_again(case: Case) -> bool:
    """The first barrier of report_tile, in the kernel that stores a ragged tile by the threads that load it again."""
    kernel = case.mutant.kernel
    if (case.compiler, kernel.text.threads) != ("triton", 128):
        return False
    behind = {kernel.text.instructions[at].base for at in _behind(kernel, case.mutant.at)}
    is_first = "ld" in behind and "atom" not in behind  # the second one is before the count
    return is_first and source_of(case) == "project.py, report_tile: tl.debug_barrier()"


# why mutants of a kind do no harm, and what shows it
REASONS: dict[str, tuple[tuple[str, ...], Callable[[Case], bool]]] = {
    "one thread both counts and reads what the count is about": ((WEAKENED,), _counts_alone),
    "what further threads load or store is used by nobody": ((UNGUARDED,), _unused),
    "the predicate holds in every thread of a block": ((UNGUARDED,), _always_holds),
    "no row is without elements, and no piece without rows": (
        (UNGUARDED, OFF_BY_ONE),
        _of_no_elements,
    ),
    "it follows another barrier, with no access between them": ((NO_BARRIER,), _nothing_between),
    "each thread clears what it alone has loaded": ((NO_BARRIER,), _clears_its_own),
    "full tiles have other barriers, of others threads load what they have stored": (
        (NO_BARRIER,),
        _orders_again,
    ),
    "a further round accesses nothing but tables": ((OFF_BY_ONE,), _accesses_nothing),
}


def reason_of(case: Case) -> str:
    """Why a mutant that no check catches does no harm; empty: nobody knows."""
    for reason, (kinds, holds) in REASONS.items():
        if case.mutant.kind in kinds and holds(case):
            return reason
    return ""
