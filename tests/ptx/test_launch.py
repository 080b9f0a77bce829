"""What a launch refuses: accesses outside of buffers, undefined values, threads that wait for ever."""

from __future__ import annotations

import pytest

from ptx.lanes import Fault
from ptx.launch import BACKWARDS, SERIAL, TOGETHER, interleaved
from ptx.tiny import in_each, run

SCHEDULES = [TOGETHER, SERIAL, BACKWARDS, interleaved(1), interleaved(2, warps=True)]


OUTSIDE = [
    ("ld.global.u32 %r5, [%rd1+-4];", "in no buffer"),
    ("ld.global.u32 %r5, [%rd2+32];", "in no buffer; 0 bytes behind the end of flag"),
    # one element is in `data`, the other one in `flag`
    ("ld.global.u64 %rd5, [%rd1+256];", "in no buffer; -4 bytes behind the end of data"),
    ("st.global.v2.u32 [%rd1+256], {%r1, %r1};", "in no buffer"),
    ("ld.global.u32 %r5, [%rd1+2];", "not aligned"),
    ("st.global.v2.u32 [%rd1+4], {%r1, %r1};", "not aligned"),
    ("ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd1+8];", "not aligned"),
    ("st.shared.u32 [room+254], %r1;", "not aligned"),
    ("st.shared.u32 [room+256], %r1;", "4 bytes at 256 of 256 bytes of shared memory"),
]


@in_each(SCHEDULES)
def test_accesses_outside_of_buffers(schedule: object) -> None:
    for body, words in OUTSIDE:
        with pytest.raises(Fault, match=words):
            run(body, schedule=schedule, words=65)


UNDEFINED = [
    ("ld.global.u32 %r5, [%rd9];", "the address is undefined"),
    ("@%p5 bra END;\nEND:", "the predicate is undefined"),
    (
        "ld.shared.u32 %r5, [room]; setp.eq.u32 %p5, %r5, 0; @%p5 bra END;\nEND:",
        "the predicate is undefined",
    ),
    (
        "ld.shared.u32 %r5, [room]; st.global.u32 [%rd4], %r5;",
        "stores what is undefined to byte 0 of data",
    ),
    ("st.global.u32 [%rd4], %r5;", "stores what is undefined to byte 0 of data"),
    ("st.global.v2.u32 [%rd1], {%r1, %r5};", "stores what is undefined to byte 4 of data"),
    (
        "@%p1 mov.u32 %r5, 1; st.global.u32 [%rd4], %r5;",
        "stores what is undefined to byte 4 of data",
    ),
    ("atom.global.add.u32 %r6, [%rd2], %r5;", "what is added is undefined"),
    # what one block leaves in its shared memory is not there for another one
    (
        "@%p2 st.shared.u32 [room], %r1; ld.shared.u32 %r5, [room]; @!%p2 st.global.u32 [%rd4], %r5;",
        "undefined",
    ),
]


@in_each(SCHEDULES)
def test_undefined_values(schedule: object) -> None:
    for body, words in UNDEFINED:
        with pytest.raises(Fault, match=words):
            run(body, schedule=schedule)


@in_each(SCHEDULES)
def test_undefined_values_that_decide_nothing(schedule: object) -> None:
    # stored, and stored over; moved through shared memory; chosen against; in lanes that do not take part
    run("st.global.u32 [%rd4], %r5; st.global.u32 [%rd4], %r1;", blocks=1, schedule=schedule)
    run("ld.shared.u32 %r5, [room]; st.shared.u32 [room+4], %r5;", schedule=schedule)
    chosen = "setp.lt.u32 %p5, %r1, 99; selp.u32 %r6, %r1, %r5, %p5; st.global.u32 [%rd4], %r6;"
    run(chosen, blocks=1, schedule=schedule)
    run("@%p1 mov.u32 %r5, 1; @%p1 st.global.u32 [%rd4], %r5;", blocks=1, schedule=schedule)


@in_each(SCHEDULES)
def test_memory_that_nothing_has_written(schedule: object) -> None:
    load = "ld.global.u32 %r5, [%rd4];"
    run(load, schedule=schedule, written=False)
    with pytest.raises(Fault, match="the predicate is undefined"):
        run(
            f"{load} setp.eq.u32 %p5, %r5, 0; @%p5 bra END;\nEND:", schedule=schedule, written=False
        )
    with pytest.raises(Fault, match="nothing has written"):
        run("atom.global.add.u32 %r5, [%rd1], 1;", schedule=schedule, written=False)
    # what is there before may be kept, and what the kernel has stored may be loaded
    run(
        f"st.global.u32 [%rd4], %r1; {load} st.global.u32 [%rd4], %r5;",
        blocks=1,
        schedule=schedule,
        written=False,
    )


WAITING = [
    "setp.lt.u32 %p3, %r1, 32; @%p3 bra END; bar.sync 0;\nEND:",
    "setp.lt.u32 %p3, %r1, 32; @%p3 ret; bar.sync 0;",
    # a part of a warp at a shuffle
    "@%p1 bra END; shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;\nEND: bar.sync 0;",
    # one warp waits at another barrier
    "setp.lt.u32 %p3, %r1, 32; @%p3 bra OTHER; bar.sync 0; bra END;\nOTHER: bar.sync 1;\nEND:",
]


@in_each(SCHEDULES)
def test_threads_that_wait_for_ever(schedule: object) -> None:
    for body in WAITING:
        with pytest.raises(Fault, match="wait"):
            run(body, threads=64, schedule=schedule)


@in_each(SCHEDULES)
def test_warps_may_pass_a_barrier_in_different_places(schedule: object) -> None:
    body = """setp.lt.u32 %p3, %r1, 32; @%p3 bra OTHER; bar.sync 0; bra END;\nOTHER: bar.sync 0;
        mov.u32 %r10, 8;\nEND: bar.sync 0; st.global.u32 [%rd4], %r10;"""
    found = run(body, blocks=1, threads=64, schedule=schedule)
    assert [*found.data] == [8] * 32 + [7] * 32


@in_each(SCHEDULES)
def test_blocks_take_all_their_turns(schedule: object) -> None:
    """Loops of different lengths, that leave the warps of a block apart, and a barrier in each turn."""
    body = """
        mov.u32 %r4, room; shr.u32 %r5, %r1, 5; mov.u32 %r6, 0;
    NEXT:
        mad.lo.u32 %r7, %r1, 4, %r4; @!%p1 bra LATER; st.shared.u32 [room], %r6;
    LATER:
        bar.sync 0; ld.shared.u32 %r8, [room]; bar.sync 0;
        add.u32 %r6, %r8, 1; setp.lt.u32 %p3, %r6, 5; @%p3 bra NEXT;
        st.global.u32 [%rd4], %r6;
    """
    found = run(body, blocks=1, threads=64, schedule=schedule)
    assert not found.races
    assert (found.data == 5).all()


def test_warps_take_turns_at_shared_memory_too() -> None:
    """Whoever stores last wins, so that this race has two ends."""
    body = """setp.eq.u32 %p3, %r1, 32; shr.u32 %r5, %r1, 5; or.pred %p4, %p1, %p3;
        @%p4 st.shared.u32 [room], %r5; @%p4 st.shared.u32 [room+4], %r5; bar.sync 0;
        ld.shared.u32 %r6, [room]; ld.shared.u32 %r7, [room+4];
        st.global.u32 [%rd1], %r6; st.global.u32 [%rd1+4], %r7;"""
    ends = {
        tuple(run(body, blocks=1, threads=64, schedule=interleaved(seed, warps=True)).data[:2])
        for seed in range(40)
    }
    assert ends == {(0, 0), (0, 1), (1, 0), (1, 1)}
