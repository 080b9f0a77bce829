"""Which accesses of tiny kernels are ordered (PTX ISA, section 8), whatever order blocks run in."""

from __future__ import annotations

import pytest

from ptx.launch import BACKWARDS, SERIAL, TOGETHER, interleaved
from ptx.tiny import in_each, run

SCHEDULES = [
    TOGETHER,
    SERIAL,
    BACKWARDS,
    interleaved(1),
    interleaved(2),
    interleaved(3, warps=True),
]

# Every block writes and counts; the last one to count reads what all have written. Block b's words begin at 8 b.
COUNT = """
    mul.lo.u32 %r4, %r2, 8; mul.wide.u32 %rd5, %r4, 4; add.s64 %rd6, %rd1, %rd5;
    {before}
    @%p1 st.global.u32 [%rd6], %r10;
    {release}
    @!%p1 bra COUNTED;
    {atom} %r5, [%rd2], 1;
COUNTED:
    {acquire}
    @!%p1 bra END;
    add.u32 %r6, %r5, 1; setp.ne.u32 %p3, %r6, %r3; @%p3 bra END;
    {learn}
    ld.global.u32 %r7, [%rd1]; ld.global.u32 %r8, [%rd1+32]; ld.global.u32 %r9, [%rd1+64];
END:
"""
RELAXED = "atom.global.add.u32"
DATA = ("st", "ld", "data")


def _count(atom: str = RELAXED, **parts: str) -> str:
    return COUNT.format(
        atom=atom, **{"before": "", "release": "", "acquire": "", "learn": ""} | parts
    )


MESSAGES = [
    ({}, False),
    ({"release": "membar.gl;", "learn": "membar.gl;"}, True),
    ({"release": "fence.acq_rel.gpu;", "learn": "fence.acq_rel.gpu;"}, True),
    ({"release": "fence.acq_rel.gpu;", "learn": "fence.sc.sys;"}, True),
    ({"release": "membar.gl;"}, False),
    ({"learn": "membar.gl;"}, False),
    # a fence before the stores releases nothing of them, one before the count acquires nothing
    ({"before": "membar.gl;", "learn": "membar.gl;"}, False),
    ({"before": "membar.gl;", "release": "membar.gl;"}, False),
    # fences of a block's scope
    ({"release": "membar.cta;", "learn": "membar.gl;"}, False),
    ({"release": "fence.acq_rel.gpu;", "learn": "fence.acq_rel.cta;"}, False),
    # a barrier orders nothing between blocks
    ({"release": "bar.sync 0;", "acquire": "bar.sync 0;"}, False),
    # the operation itself releases and acquires, or one of both
    ({"atom": "atom.global.gpu.acq_rel.add.u32"}, True),
    ({"atom": "atom.global.gpu.release.add.u32", "learn": "fence.acq_rel.gpu;"}, True),
    ({"atom": "atom.global.gpu.acquire.add.u32", "release": "fence.acq_rel.gpu;"}, True),
    ({"atom": "atom.global.gpu.release.add.u32"}, False),
    ({"atom": "atom.global.gpu.acquire.add.u32"}, False),
]


@in_each(SCHEDULES)
def test_messages_between_blocks(schedule: object) -> None:
    """Three blocks: the last has to know what the first released, through the second's operation."""
    for parts, ordered in MESSAGES:
        found = run(_count(**parts), blocks=3, schedule=schedule)
        assert found.kinds == (set() if ordered else {DATA})


@in_each(SCHEDULES)
def test_atomic_operations_of_a_narrow_scope_race(schedule: object) -> None:
    fences = {"release": "membar.gl;", "learn": "membar.gl;"}
    found = run(_count("atom.global.cta.relaxed.add.u32", **fences), blocks=3, schedule=schedule)
    assert found.kinds == {DATA, ("atom", "atom", "flag")}
    # within a block they are strong
    body = "atom.global.cta.relaxed.add.u32 %r5, [%rd2], 1;"
    assert not run(body, blocks=1, threads=64, schedule=schedule).races


@in_each(SCHEDULES)
def test_the_operation_itself_is_ordered_before_what_follows_one_that_observes_it(
    schedule: object,
) -> None:
    """Observation order is part of causality order: the last block may reset the count without a fence."""
    reset = "@%p1 st.global.u32 [%rd2], %r10;"
    body = """@!%p1 bra END; atom.global.add.u32 %r5, [%rd2], 1;
        add.u32 %r6, %r5, 1; setp.ne.u32 %p3, %r6, %r3; @%p3 bra END; {reset}\nEND:"""
    assert not run(body.format(reset=reset), blocks=3, schedule=schedule).races
    if schedule in (TOGETHER, SERIAL):  # block 0 has not observed the others
        always = """
            @!%p1 bra END;
            atom.global.add.u32 %r5, [%rd2], 1;
            @%p2 st.global.u32 [%rd2], %r10;
        END:
        """
        assert run(always, blocks=3, schedule=schedule).kinds == {("atom", "st", "flag")}


# The pattern of the last block: all threads write, one counts, another one reads what other blocks wrote.
LAST = """
    mad.lo.u32 %r4, %r2, 32, %r1; mul.wide.u32 %rd5, %r4, 4; add.s64 %rd6, %rd1, %rd5;
    st.global.u32 [%rd6], %r10;
    {all_before}
    bar.sync 0;
    @!%p1 bra COUNTED;
    {release}
    atom.global{order}.add.u32 %r5, [%rd2], 1;
    {acquire}
    st.shared.u32 [room], %r5;
COUNTED:
    bar.sync 0;
    ld.shared.u32 %r5, [room];
    add.u32 %r6, %r5, 1; setp.ne.u32 %p3, %r6, %r3; @%p3 bra END;
    {all_behind}
    sub.u32 %r7, 31, %r1; mul.wide.u32 %rd7, %r7, 4; add.s64 %rd8, %rd1, %rd7;
    ld.global.u32 %r8, [%rd8]; ld.global.u32 %r9, [%rd8+128];
END:
"""


def _last(order: str = "", **parts: str) -> str:
    names = "all_before", "release", "acquire", "all_behind"
    return LAST.format(order=order, **dict.fromkeys(names, "") | parts)


SC, AR = "fence.sc.gpu;", "fence.acq_rel.gpu;"


LAST_BLOCKS = [
    # the thread that counts acquires, and a barrier passes it on
    ({"release": AR, "acquire": AR}, True),
    ({"order": ".gpu.acq_rel"}, True),
    # every reader executes a fence behind the barrier: that does it only if all are fence.sc
    ({"release": SC, "all_behind": SC}, True),
    ({"release": SC, "all_behind": AR}, False),
    ({"release": AR, "all_behind": SC}, False),
    ({"order": ".gpu.release", "all_behind": SC}, False),
    # likewise the writers, before the barrier
    ({"all_before": SC, "all_behind": SC}, True),
    ({"all_before": AR, "all_behind": SC}, False),
    ({"all_before": SC, "all_behind": AR}, False),
    ({"all_before": SC, "acquire": AR}, False),
    ({"all_before": SC, "acquire": SC}, True),
    ({"release": SC}, False),
    ({"all_behind": SC}, False),
]


@in_each(SCHEDULES)
def test_last_block(schedule: object) -> None:
    for parts, ordered in LAST_BLOCKS:
        found = run(_last(**parts), schedule=schedule)
        assert found.kinds == (set() if ordered else {DATA})


@in_each(SCHEDULES)
def test_a_release_does_not_hold_what_follows_its_fence(schedule: object) -> None:
    """A release pattern begins with its fence (section 8.9.4): what is between it and the write is not in it."""
    late = _count(release="", learn="membar.gl;").replace(
        "@%p1 st.global", "membar.gl; @%p1 st.global"
    )
    assert run(late, blocks=3, schedule=schedule).kinds == {DATA}
    # that of the operation itself is
    operation = _count("atom.global.gpu.acq_rel.add.u32", before="membar.gl;")
    assert not run(operation, blocks=3, schedule=schedule).races


@pytest.mark.parametrize(
    "counts", ["atom.global.add.u32 %r5, [%rd2], 1;", "red.global.add.u32 [%rd2], 1;"]
)
def test_who_does_not_ask_whether_anybody_has_released_races_in_some_order(counts: str) -> None:
    """The first block releases; the second does not look at the count. Only where it comes first does that show.

    What `red` finds nobody can look at, so that it acquires nothing in any order.
    """
    body = f"""
        @!%p1 bra END; @!%p2 bra OTHER;
        st.global.u32 [%rd1], %r10; membar.gl; {counts} bra END;
    OTHER:
        {counts} membar.gl; ld.global.u32 %r6, [%rd1];
    END:
    """
    assert run(body, schedule=BACKWARDS).kinds == {DATA}
    assert run(body, schedule=SERIAL).kinds == (set() if "atom" in counts else {DATA})


@in_each(SCHEDULES)
def test_a_usual_store_ends_the_chain(schedule: object) -> None:
    """What reads a weak store, or a strong one without a release, observes no earlier release."""
    body = """
        @!%p1 bra END;
        @!%p2 bra OTHERS;
        st.global.u32 [%rd1], %r10; membar.gl; atom.global.add.u32 %r5, [%rd2], 1;
        {store}
        bra END;
    OTHERS:
        atom.global.add.u32 %r5, [%rd2], 1; membar.gl; ld.global.u32 %r7, [%rd1];
    END:
    """
    for store in ("st.global.u32 [%rd2], %r10;", "st.global.u16 [%rd2+2], 1;"):
        found = run(body.format(store=store), schedule=SERIAL)
        assert DATA in found.kinds
    if schedule == SERIAL:  # else the flag may be read before
        assert DATA not in run(body.format(store=""), schedule=schedule).kinds
        # a strong store behind a fence releases
        strong = "membar.gl; st.global.relaxed.gpu.u32 [%rd2], %r10;"
        assert not run(body.format(store=strong), schedule=schedule).races


@in_each(SCHEDULES)
def test_strong_loads_and_stores(schedule: object) -> None:
    """A flag without atomic operations. Only where it was read may the data be."""
    body = """
        @!%p1 bra END;
        @!%p2 bra OTHER;
        st.global.u32 [%rd1], %r10; st.global.release.gpu.u32 [%rd2], %r10; bra END;
    OTHER:
        ld.global.{order}.u32 %r5, [%rd2]; setp.ne.u32 %p3, %r5, 7; @%p3 bra END;
        ld.global.u32 %r6, [%rd1];
    END:
    """
    assert not run(body.format(order="acquire.gpu"), schedule=schedule).races
    if schedule == SERIAL:
        assert run(body.format(order="relaxed.gpu"), schedule=schedule).kinds == {DATA}
        weak = run(body.format(order="cg"), schedule=schedule).kinds
        assert weak == {DATA, ("st", "ld", "flag")}


@in_each(SCHEDULES)
@pytest.mark.parametrize(
    "barrier", ["", "bar.sync 0;", "bar.warp.sync -1;", "shfl.sync.bfly.b32 %r9, %r1, 1, 31, -1;"]
)
def test_barriers_of_block_and_warp(barrier: str, schedule: object) -> None:
    """A thread reads what its neighbour, or the other warp, has stored in shared memory."""
    body = """
        mov.u32 %r4, room; mad.lo.u32 %r5, %r1, 4, %r4; st.shared.u32 [%r5], %r1;
        {barrier}
        xor.b32 %r6, %r1, {other}; mad.lo.u32 %r7, %r6, 4, %r4; ld.shared.u32 %r8, [%r7];
        st.global.u32 [%rd4], %r8;
    """
    race = {("st", "ld", "shared memory")}
    for other in (1, 32):
        text = body.format(barrier=barrier, other=other)
        ordered = "bar.sync" in barrier or ("bar.warp" in barrier and other == 1)
        # whether there is something to load depends on the schedule
        if not ordered and schedule != TOGETHER:
            continue
        found = run(text, blocks=1, threads=64, schedule=schedule)
        assert found.kinds == (set() if ordered else race)
        passed = run(text, blocks=1, threads=64, schedule=schedule, shuffles_order=True)
        by_shuffle = "shfl" in barrier and other == 1
        assert passed.kinds == (set() if ordered or by_shuffle else race)


def test_order_of_many_threads_takes_little_time() -> None:
    """240 blocks of 256 threads, which all execute fences: knowledge is kept once for those who have the same."""
    body = _last(release=SC, all_behind=SC, all_before=SC).replace("31, %r1", "255, %r1")
    body = body.replace("%r2, 32", "%r2, 256")
    found = run(body, blocks=240, threads=256, words=240 * 256)
    assert not found.races
    assert (found.data == 7).all()
