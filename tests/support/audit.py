"""Checks of compiled kernels (design: bytes per parameter, 128-bit accesses, no spills, exact arithmetic)."""

from __future__ import annotations

import re
from typing import NamedTuple

import sass
from named_schemes import NAMED

from stackelberg_fused.groups.rules import RULES, Rule
from stackelberg_fused.native.tables import TILE_ELEMENTS

# What a thread may read beside elements, in loads: a tile, a record, a row, its group, count and readiness, a rate in a
# tensor, the factors of clipping and unscaling, found_inf. And what it may write: the count, readiness, the arrivals.
TABLE_LOADS = 2 + 9 + 16 + 8 + 2 + 1 + 2 + 1
COUNT_STORES = 3
REGISTERS = 65536  # of a multiprocessor
STATISTICS_THREADS = 256  # of a block, which reads a tile

# That an H200 can issue in the time in which its memory moves a byte, by its data sheet: 132 multiprocessors of 4 times
# 32 lanes, at up to 1.98 GHz, and 4.8 TB/s.
INSTRUCTIONS_PER_BYTE = 132 * 4 * 32 * 1.98e9 / 4.8e12

# of these a multiprocessor executes 64 a clock, not 128, by CUDA's programming guide
HALF_RATE = (
    *("LOP3", "PLOP3", "SHF", "PRMT", "SGXT", "BMSK", "IADD3", "VIADD", "LEA"),
    *("ISETP", "FSETP", "SEL", "FSEL", "FMNMX", "VIMNMX", "VIMNMX3"),
)

ATOMICS = ("ATOM", "ATOMG", "RED", "REDG")

_ROUNDED = ("add", "sub", "mul", "fma", "mad", "div", "sqrt", "rcp")


def buffers_moved(rule: int) -> tuple[int, int]:
    """Float32 buffers that a rule reads and writes: the bytes per parameter that no kernel can go below, over 4."""
    reads = len(buffers_used(rule))
    return reads, reads - 1


def buffers_used(rule: int) -> tuple[str, ...]:
    """Return the fields of a record whose memory a rule reads, and, but for the gradient, writes."""
    fields = ["param", "grad"]
    if not rule & Rule.SGD or rule & Rule.MOMENTUM:
        fields.append("exp_avg")
    if not rule & Rule.SGD:
        fields.append("exp_avg_sq")
    if rule & Rule.AMSGRAD:
        fields.append("max_exp_avg_sq")
    if rule & Rule.EMA:
        fields.append("ema")
    return tuple(fields)


def assert_kept_in_registers(kernel: sass.Kernel, threads: int, blocks: int) -> None:
    """Assert that so many blocks fit, without spills, and that what they read is known for global memory."""
    name = kernel.name
    assert kernel.resources["STACK"] == kernel.resources["LOCAL"] == 0, (name, kernel.resources)
    assert kernel.count("LDL", "STL") == 0, f"{name} spills"
    assert kernel.count("LD", "ST") == 0, f"{name} uses generic addresses"
    per_thread = -(-kernel.resources["REG"] // 8) * 8
    assert blocks * threads * per_thread <= REGISTERS, f"{name}: {per_thread} registers per thread"


def audit(
    kernel: sass.Kernel,
    rules: tuple[int, ...],
    threads: int,
    blocks: int,
    passes: int = 1,
    sums_or_clears: bool = False,
) -> None:
    """Assert that a kernel's full-tile path moves every element once, 16 bytes at a time, and keeps all in registers.

    Args:
        rules: those that the kernel can apply; the paths through it have to be exactly theirs.
        threads: of a block, which updates one tile.
        blocks: that have to fit on a multiprocessor.
        passes: in how many goes a tile is updated; scalars may be read in each.
        sums_or_clears: it may also sum gradients up and clear them, which paths cannot tell apart: the bytes are
            then counted by the host-run kernel.
    """
    name = kernel.name
    assert_kept_in_registers(kernel, threads, blocks)

    wide = kernel.wide_accesses()
    if not sums_or_clears:
        assert all(not access.guard for access in wide), f"{name}: predicated 128-bit accesses"
    assert kernel.wide_in_loops() == []
    assert sum(i.access_bytes == 16 for i in kernel.reachable()) == len(wide), (
        f"{name}: control flow was misread"
    )
    paths = [path for path in kernel.paths() if path.load_bytes or path.store_bytes]
    per_parameter = {
        (path.load_bytes * threads / TILE_ELEMENTS, path.store_bytes * threads / TILE_ELEMENTS)
        for path in paths
    }
    floors = {(4.0 * reads, 4.0 * writes) for reads, writes in map(buffers_moved, rules)}
    if sums_or_clears:
        assert max(per_parameter)[0] <= max(floors)[0] + 4.0, name
        return
    assert per_parameter == floors, name
    for path in paths:
        assert path.narrow_stores in (0, COUNT_STORES), (
            f"{name}: narrow stores on the full-tile path"
        )
        # the bounds of a box may be read for each element, from memory that the block shares
        bounds = 2 * TILE_ELEMENTS // threads
        assert path.narrow_loads <= passes * TABLE_LOADS + bounds, f"{name}: {path}"


def audit_low_precision(kernel: sass.Kernel, threads: int, blocks: int) -> None:
    """Assert that full tiles of the schemes in `NAMED` are moved once, 16 bytes at a time, and all is in registers.

    What the kernel moves of anything else, in loops, is up to the records; the host-run kernel counts it.
    """
    name = kernel.name
    assert_kept_in_registers(kernel, threads, blocks)
    wide = kernel.wide_accesses()
    assert sum(i.access_bytes == 16 for i in kernel.reachable()) == len(wide), (
        f"{name}: control flow was misread"
    )
    # in loops they are of what the path that branches moves, four float32 at a time
    in_loops = set(map(id, kernel.wide_in_loops()))
    assert all(not access.guard for access in wide if id(access) not in in_loops), (
        f"{name}: predicated 128-bit accesses"
    )
    paths = kernel.paths(with_loops=False)
    (idle,) = (path for path in paths if not path.load_bytes and not path.store_bytes)
    # a path that loads but stores nothing has found codes, or a rule, for the loops to take over
    found = {
        (
            path.load_bytes * threads / TILE_ELEMENTS,
            path.store_bytes * threads / TILE_ELEMENTS,
            path.narrow_loads - idle.narrow_loads,
            path.narrow_stores - idle.narrow_stores,
        )
        for path in paths
        if path.store_bytes
    }
    # a thread reads and writes one scale of each moment
    scales = {named: 2 if named.has_codes else 0 for named in NAMED.values()}
    assert found == {(*n.bytes_moved(), count, count) for n, count in scales.items()}, name


class Issued(NamedTuple):
    """Per element of a full tile: all instructions, and how many issue slots those of half rate take up."""

    instructions: float
    half_rate_slots: float


def instructions_per_parameter(kernel: sass.Kernel, threads: int) -> dict[str, Issued]:
    """Return what the threads of a block execute per element of a full tile, by the schemes in `NAMED`.

    Of rules and schemes that move the same bytes it is the dearest; without a box, squares of zero and what is called.
    """
    elements = TILE_ELEMENTS // threads
    every = kernel.fewest_instructions()
    half_rate = kernel.fewest_instructions(lambda one: 2 if one.name in HALF_RATE else 0)
    found = {}
    for name, named in NAMED.items():
        loads, stores = (int(elements * part) for part in named.bytes_moved())
        found[name] = Issued(every[loads, stores] / elements, half_rate[loads, stores] / elements)
    return found


def audit_formats(
    kernel: sass.Kernel, moved: set[tuple[float, float]], threads: int, blocks: int
) -> None:
    """Assert that paths over full tiles move these bytes, 16 at a time: read and written by a thread in one pass.

    Args:
        moved: without those of scales, which are single bytes.
    """
    assert_kept_in_registers(kernel, threads, blocks)
    assert all(not access.guard for access in kernel.wide_accesses()), kernel.name
    paths = [path for path in kernel.paths() if path.load_bytes or path.store_bytes]
    assert {(float(path.load_bytes), float(path.store_bytes)) for path in paths} == moved
    for path in paths:
        # scales, and what a block reads of its tables
        assert path.narrow_stores <= 2, (kernel.name, path)
        assert path.narrow_loads <= TABLE_LOADS, (kernel.name, path)


def audit_statistics(kernel: sass.Kernel) -> None:
    """Assert that a kernel of gradient statistics reads every gradient once, 16 bytes at a time, and writes none."""
    name = kernel.name
    assert kernel.resources["STACK"] == kernel.resources["LOCAL"] == 0, (name, kernel.resources)
    assert kernel.count("LDL", "STL", "LD", "ST") == 0, f"{name} spills, or uses generic addresses"
    assert all(not access.guard for access in kernel.wide_accesses()), name
    assert kernel.wide_in_loops() == []
    assert {path.load_bytes for path in kernel.paths()} == {
        0,
        4 * TILE_ELEMENTS // STATISTICS_THREADS,
    }, name
    assert {path.store_bytes for path in kernel.paths()} == {0}, name


def audit_projection(kernel: sass.Kernel, put_aside: int = 0) -> None:
    """Assert that a kernel that projects keeps all in registers and knows what it reads for global memory.

    Args:
        put_aside: how many values may be, around the calls that 64-bit divisions are: some per row, none per element.
    """
    name = kernel.name
    assert kernel.resources["LOCAL"] == 0, (name, kernel.resources)
    assert kernel.count("STL") <= put_aside, f"{name} spills"
    assert kernel.count("LD", "ST") == 0, f"{name} uses generic addresses"
    assert kernel.count(*ATOMICS) == 0, name


def is_signal(instruction: sass.Instruction) -> bool:
    """Tell whether an instruction is an atomic whose result is read."""
    return instruction.name in ("ATOM", "ATOMG") and not re.match(
        r"(PT, )?RZ,", instruction.operands
    )


def unordered_atomics(kernel: sass.Kernel) -> list[sass.Instruction]:
    """Atomics with which a block says that it is done, but that its last store or all it read may be behind.

    There has to be a barrier on every way to one, and no store between; under the atomic's own predicate, if any. One
    whose result nobody reads says nothing: it adds, as a store would write.
    """
    found: dict[int, sass.Instruction] = {}
    seen: set[tuple[int, str | None]] = set()
    pending: list[tuple[int, str | None]] = [(0, None)]  # and the predicate of the barrier passed
    while pending:
        i, fence = pending.pop()
        if (i, fence) in seen:
            continue
        seen.add((i, fence))
        instruction = kernel.instructions[i]
        is_atomic = instruction.name in ATOMICS
        if is_signal(instruction) and fence not in ("", instruction.guard):
            found[i] = instruction
        if instruction.name == "MEMBAR" and instruction.opcode.endswith(".GPU"):
            fence = "" if fence == "" else instruction.guard
        elif is_atomic or instruction.name == "STG":
            fence = None
        elif fence and re.search(rf"^(PT, )?{fence.lstrip('!')}, ", instruction.operands):
            fence = None  # the predicate has another value now
        pending += [(after, fence) for after in kernel.successors(i)]
    return list(found.values())


def inexact_arithmetic(ptx: str) -> set[str]:
    """Float instructions of PTX whose result is not the correctly rounded one, subnormals kept.

    An addition or multiplication without a rounding mode is among them: ptxas may contract it.
    """
    opcodes = re.findall(r"\b[a-z]\w*(?:\.\w+)*\.(?:bf16|f16|f32|f64)\b(?:\.\w+)*", ptx)
    return {
        opcode
        for opcode in opcodes
        if re.search(r"\.(ftz|approx|full)\b", opcode)
        or (opcode.split(".")[0] in _ROUNDED and ".rn" not in opcode)
    }


__all__ = [
    "ATOMICS",
    "RULES",
    "audit",
    "audit_formats",
    "audit_low_precision",
    "audit_statistics",
    "buffers_moved",
    "buffers_used",
    "inexact_arithmetic",
    "instructions_per_parameter",
    "is_signal",
    "unordered_atomics",
]
