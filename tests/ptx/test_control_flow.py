"""Branches, loops, exits and barriers (sections 9.7.12 and 9.7.13)."""

from __future__ import annotations

import numpy as np
import pytest

from . import launch
from .kernel import Kernel
from .lanes import Fault
from .launch import SERIAL, TOGETHER, Launch, Schedule, interleaved
from .memory import Memory
from .one_instruction import kernel, kernel_text, run
from .parser import NotUnderstood

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

STORE = "mul.wide.u32 %d1, %i, 4;\nadd.s64 %d1, %a0, %d1;\nst.global.u32 [%d1], %r1;\n"
SCHEDULES = [TOGETHER, SERIAL, interleaved(0), interleaved(1, warps=True)]
ALL = "0xffffffff"


def out(count: int = 32) -> np.ndarray:
    return np.full(count, 0xEEEEEEEE, np.uint32)


def test_threads_take_their_own_sides_and_join() -> None:
    found = out()
    run(
        "setp.lt.u32 %p1, %t, 10;\n@%p1 bra SMALL;\nsetp.lt.u32 %p2, %t, 20;\n@!%p2 bra LARGE;\n"
        "mov.u32 %r1, 2;\nbra JOIN;\nLARGE:\nmov.u32 %r1, 3;\nbra.uni JOIN;\nSMALL: mov.u32 %r1, 1;\n"
        f"JOIN:\nredux.sync.add.u32 %r2, 1, {ALL};\nmad.lo.s32 %r1, %r2, 10, %r1;\n" + STORE,
        found,
    )
    assert found.tolist() == [321] * 10 + [322] * 10 + [323] * 12


def test_a_loop_runs_as_often_as_each_thread_says() -> None:
    found = out(128)
    run(
        "mov.u32 %r1, 0;\nmov.u32 %r2, 0;\nLOOP:\nsetp.ge.u32 %p1, %r2, %t;\n@%p1 bra DONE;\n"
        "add.s32 %r1, %r1, %r2;\nadd.s32 %r2, %r2, 1;\nbra.uni LOOP;\nDONE:\n" + STORE,
        found,
        threads=64,
        grid=2,
    )
    assert found.tolist() == [t * (t - 1) // 2 for t in range(64)] * 2


def test_a_loop_without_an_end_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "MOST_INSTRUCTIONS", 1000)
    with pytest.raises(Fault, match="does not end"):
        run("LOOP:\nbra LOOP;")


def test_a_branch_by_index_goes_to_the_label_of_its_list() -> None:
    body = (
        "rem.u32 %r2, %t, {0};\nLIST: .branchtargets A, B, A, C;\n@%p1 brx.idx %r2, LIST;\n"
        "mov.u32 %r1, 9;\nbra JOIN;\nA:\nmov.u32 %r1, 1;\nbra JOIN;\nB:\nmov.u32 %r1, 2;\nbra JOIN;\n"
        "C:\nmov.u32 %r1, 3;\nJOIN:\n" + STORE
    )
    found = out()
    run("setp.lt.u32 %p1, %t, 30;\n" + body.format(4), found)
    assert found.tolist() == ([1, 2, 1, 3] * 8)[:30] + [9, 9]
    with pytest.raises(Fault, match="branch 4 of 4"):
        run("setp.lt.u32 %p1, %t, 30;\n" + body.format(5), found)
    with pytest.raises(Fault, match="the index of a branch is undefined"):
        run("LIST: .branchtargets A;\nbrx.idx %r9, LIST;\nA:\n")


def test_what_is_said_not_to_part_a_warp_must_not_have_a_guard() -> None:
    kernel("HERE: bra.uni HERE;")
    with pytest.raises(NotUnderstood, match=r"@%p1 bra\.uni HERE"):
        kernel("HERE: @%p1 bra.uni HERE;")


def test_a_predicate_that_nothing_has_computed_is_a_fault() -> None:
    with pytest.raises(Fault, match="the predicate is undefined"):
        run("@%p1 bra END;\nEND:\n")
    with pytest.raises(Fault, match="the predicate is undefined"):
        run("@%p1 mov.u32 %r1, 0;")


def test_threads_may_end_one_by_one() -> None:
    found = out()
    run(
        "mov.u32 %r1, 1;\nsetp.lt.u32 %p1, %t, 5;\n@%p1 exit;\n"
        + STORE
        + "@!%p1 ret;\nmov.u32 %r1, 2;",
        found,
    )
    assert found.tolist() == [0xEEEEEEEE] * 5 + [1] * 27


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nobody_passes_a_barrier_before_all_of_the_block_are_there(schedule: Schedule) -> None:
    """Warps arrive in different orders: after loops of different lengths."""
    found = out(256)
    run(
        "and.b32 %r5, %t, 96;\nsetp.eq.u32 %p2, %b, 0;\n@%p2 sub.s32 %r5, 96, %r5;\nmov.u32 %r2, 0;\n"
        "LOOP:\nsetp.ge.u32 %p1, %r2, %r5;\n@%p1 bra DONE;\nadd.s32 %r2, %r2, 7;\nbra LOOP;\nDONE:\n"
        "shl.b32 %r3, %t, 2;\nmov.u32 %r4, block;\nadd.s32 %r3, %r3, %r4;\nst.shared.u32 [%r3], %t;\n"
        "bar.sync 0;\nxor.b32 %r3, %r3, 508;\nld.shared.u32 %r1, [%r3];\nbarrier.sync.aligned 1;\n"
        "st.shared.u32 [%r3], 0;\n" + STORE,
        found,
        threads=128,
        grid=2,
        schedule=schedule,
        outside=".shared .align 512 .b8 block[512];",
    )
    assert found.tolist() == [k ^ 127 for k in range(128)] * 2


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_that_some_threads_never_reach_is_named(schedule: Schedule) -> None:
    body = "setp.lt.u32 %p1, %t, 32;\n@%p1 ret;\nbar.sync 0;"
    with pytest.raises(Fault, match=r"threads wait for ever at bar\.sync 0"):
        run(body, threads=64, grid=2, schedule=schedule)
    body = "setp.lt.u32 %p1, %t, 32;\n@%p1 bra A;\nbar.sync 0;\nret;\nA:\nbar.sync 1;"
    with pytest.raises(Fault, match="wait at different barriers"):
        run(body, threads=64, schedule=schedule)


def test_a_barrier_is_reached_by_whole_warps_unless_it_is_not_aligned() -> None:
    body = "setp.lt.u32 %p1, %t, 16;\n@%p1 bra A;\n{0} 0;\nret;\nA:\n{0} 0;"
    with pytest.raises(Fault, match="some threads of a warp pass bar"):
        run(body.format("bar.sync"), threads=64)
    run(body.format("barrier.sync"), threads=64)
    # another instruction for each warp is allowed
    run(body.replace("16", "32").format("bar.sync"), threads=64)
    # so is one that part of a warp reaches later, from a block that lies behind it
    run(
        "setp.lt.u32 %p1, %t, 16;\n@%p1 bra COLD;\nHERE:\nbar.sync 0;\nret;\nCOLD:\nbra HERE;",
        threads=64,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_instruction_of_a_warp_waits_for_the_rest_of_it(schedule: Schedule) -> None:
    """Threads come from a block behind it, and other warps do not wait."""
    found = out(64)
    run(
        "setp.lt.u32 %p1, %t, 5;\nmov.u32 %r2, 1;\n@%p1 bra COLD;\n"
        f"HERE:\nredux.sync.add.u32 %r1, %r2, {ALL};\nbar.warp.sync {ALL};\n" + STORE + "ret;\n"
        "COLD:\nmov.u32 %r2, 100;\nbra HERE;",
        found,
        threads=64,
        schedule=schedule,
    )
    assert found.tolist() == [27 + 500] * 32 + [32] * 32
    with pytest.raises(Fault, match=r"wait for ever at bar\.warp\.sync"):
        run(f"setp.lt.u32 %p1, %t, 5;\n@%p1 ret;\nbar.warp.sync {ALL};", schedule=schedule)


def test_threads_must_not_run_beyond_the_end() -> None:
    text = kernel_text("mov.u32 %r1, 0;")
    assert text.instructions.pop().opcode == "ret"
    with pytest.raises(Fault, match="beyond the end"):
        Launch(Kernel(text), 1, b"", Memory()).run()


@pytest.mark.parametrize(
    "instruction",
    [
        "bra NOWHERE",
        "brx.idx %r1, NOWHERE",
        "bar.sync 0, 64",
        "bar.sync %r1",
        "bar.arrive 0, 64",
        "bar.warp.sync 0x0000ffff",
        "bar.warp.sync %r1",
        "bar.red.popc.u32 %r1, 0, %p1",
        "membar.proxy.alias",
        "fence.proxy.async",
        "fence.acq_rel.cluster",
        "call (%r1), function, (%r2)",
        "trap",
        "nanosleep.u32 20",
    ],
)
def test_a_spelling_that_is_not_known_is_an_error_that_names_it(instruction: str) -> None:
    with pytest.raises(NotUnderstood) as raised:
        kernel(instruction + ";")
    assert instruction in str(raised.value)
