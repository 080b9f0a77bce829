"""Which accesses race, and by which bytes."""

from __future__ import annotations

import pytest

from ptx.launch import BACKWARDS, SERIAL, TOGETHER, interleaved
from ptx.tiny import in_each, run

SCHEDULES = [TOGETHER, SERIAL, BACKWARDS, interleaved(1), interleaved(2)]


@in_each(SCHEDULES)
@pytest.mark.parametrize(
    "first, second, races",
    [
        ("st.global.u32 [%rd1], %r10;", "st.global.u32 [%rd1+4], %r10;", False),
        ("st.global.u8 [%rd1], 1;", "st.global.u8 [%rd1+1], 2;", False),
        ("st.global.u16 [%rd1], 1;", "st.global.u8 [%rd1+1], 2;", True),
        ("st.global.u64 [%rd1+8], %rd1;", "ld.global.u32 %r5, [%rd1+12];", True),
        ("st.global.u64 [%rd1+8], %rd1;", "ld.global.u32 %r5, [%rd1+16];", False),
        (
            "st.global.v4.u32 [%rd1+16], {%r1, %r2, %r3, %r10};",
            "ld.global.u8 %rs5, [%rd1+31];",
            True,
        ),
        (
            "st.global.v4.u32 [%rd1+16], {%r1, %r2, %r3, %r10};",
            "ld.global.u8 %rs5, [%rd1+32];",
            False,
        ),
        ("st.global.u8 [%rd1+31], 3;", "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%rd1+16];", True),
        ("ld.global.u32 %r5, [%rd1];", "ld.global.u16 %rs5, [%rd1];", False),
        # atomic operations are no race only on the same bytes
        ("atom.global.add.u32 %r5, [%rd1], 1;", "atom.global.add.u32 %r5, [%rd1], 1;", False),
        ("atom.global.add.u32 %r5, [%rd1], 1;", "atom.global.add.u64 %rd5, [%rd1], 1;", True),
        ("atom.global.add.u32 %r5, [%rd1], 1;", "ld.global.u32 %r5, [%rd1];", True),
        ("atom.global.add.u32 %r5, [%rd1], 1;", "ld.global.relaxed.gpu.u32 %r5, [%rd1];", False),
        ("atom.global.add.u32 %r5, [%rd1], 1;", "ld.global.relaxed.cta.u32 %r5, [%rd1];", True),
        # blocks have a shared memory each
        ("st.shared.u32 [room], %r10;", "st.shared.u32 [room], %r1;", False),
    ],
)
def test_two_blocks(first: str, second: str, races: bool, schedule: object) -> None:
    body = f"@!%p1 bra END; @!%p2 bra OTHER; {first} bra END;\nOTHER: {second}\nEND:"
    found = run(body, schedule=schedule)
    assert bool(found.races) == races
    assert not any(race.is_benign for race in found.races)


@in_each(SCHEDULES)
def test_equal_stores_are_told_from_others(schedule: object) -> None:
    (equal,) = run("@%p1 st.global.u32 [%rd1], %r10;", schedule=schedule).races
    assert equal.is_benign
    assert str(equal).startswith("equal stores on data: ")
    (other,) = run("@%p1 st.global.u32 [%rd1], %r2;", schedule=schedule, data=[9]).races
    assert not other.is_benign
    # lanes of one instruction are threads too
    (equal,) = run("st.shared.u32 [room], %r10;", blocks=1, schedule=schedule).races
    assert equal.is_benign
    (other,) = run("st.shared.u32 [room], %r1;", blocks=1, schedule=schedule).races
    assert not other.is_benign


@in_each([TOGETHER, SERIAL])
def test_a_load_is_compared_with_all_writes_that_nothing_orders(schedule: object) -> None:
    """The last of several atomic operations, or of equal stores, is ordered before the load, the first is not."""
    body = """
        @!%p1 bra END;
        setp.lt.u32 %p4, %r2, 2; setp.eq.u32 %p5, %r2, {released};
        @%p4 {write}
        @%p5 membar.gl;
        atom.global.add.u32 %r5, [%rd2], 1;
        @%p4 bra END;
        membar.gl;
        ld.global.u32 %r7, [%rd1];
    END:
    """
    for write in ("atom.global.add.u32 %r8, [%rd1], 1;", "st.global.u32 [%rd1], %r10;"):
        race = (write.partition(".")[0], "ld", "data")
        # what block 1's operation has observed of block 0's is released with it
        for released in (0, 1) if "st" in race else (0,):
            found = run(body.format(write=write, released=released), blocks=3, schedule=schedule)
            assert race in found.kinds
        all_released = body.format(write=write, released=0).replace("@%p5", "")
        found = run(all_released, blocks=3, schedule=schedule)
        assert race not in found.kinds
        assert all(race.is_benign for race in found.races)


@in_each(SCHEDULES)
def test_a_block_stores_what_another_has_loaded(schedule: object) -> None:
    """Between two blocks nothing orders the load before the store, which comes later by chance."""
    body = "@!%p1 bra END; ld.global.u32 %r5, [%rd1];\n@%p2 st.global.u32 [%rd1], %r10;\nEND:"
    assert run(body, schedule=schedule).kinds == {("ld", "st", "data")}
    assert not run(body, blocks=1, schedule=schedule).races


# three blocks or warps, one thread of each, one after another; what follows TWO: is the third's
ONE_AFTER_ANOTHER = """
    setp.eq.u32 %p3, {number}, {one}; setp.eq.u32 %p4, {number}, {two};
    @%p3 bra ONE; @%p4 bra TWO; @!%p1 bra END; @!%p2 bra END;
    {first} bra END;
ONE: {second} bra END;
TWO: {third}
END:
"""
ADD = "atom.global.add.u32 %r5, [%rd1], 1;"
RELEASE, ACQUIRE = (
    "membar.gl; atom.global.add.u32 %r6, [%rd2], 1;",
    "atom.global.add.u32 %r6, [%rd2], 1; membar.gl;",
)


@pytest.mark.parametrize(
    "first, second, third, race",
    [
        # the atomic operation is ordered behind the store; the load is not, though it needs no order with the operation
        (
            f"st.global.u32 [%rd1], %r10; {RELEASE}",
            f"{ACQUIRE} {ADD}",
            "ld.global.relaxed.gpu.u32 %r7, [%rd1];",
            ("st", "ld", "data"),
        ),
        # likewise before a store
        (
            "ld.global.relaxed.gpu.u32 %r7, [%rd1];",
            ADD,
            f"{ADD} st.global.u32 [%rd1], 0;",
            ("ld", "st", "data"),
        ),
    ],
)
def test_a_strong_load_is_compared_beyond_operations_that_it_needs_no_order_with(
    first: str, second: str, third: str, race: tuple[str, str, str]
) -> None:
    body = ONE_AFTER_ANOTHER.format(
        number="%r2", one=1, two=2, first=first, second=second, third=f"@!%p1 bra END; {third}"
    ).replace("ONE: ", "ONE: @!%p1 bra END; ")
    assert run(body, blocks=3, schedule=SERIAL).kinds == {race}


def test_an_operation_of_a_narrow_scope_is_compared_beyond_those_of_a_wide_one() -> None:
    body = ONE_AFTER_ANOTHER.format(
        number="%r1",
        one=32,
        two=64,
        first=f"st.global.u32 [%rd1], %r10; {RELEASE}",
        second=f"{ACQUIRE} {ADD}",
        third="atom.global.cta.relaxed.add.u32 %r7, [%rd1], 1;",
    )
    found = run(body, blocks=1, threads=96)
    assert found.kinds == {("st", "atom", "data")}


@in_each([TOGETHER, SERIAL])
def test_narrow_and_wide_operations_of_several_blocks(schedule: object) -> None:
    """Blocks 0 and 2 narrow theirs: these two race, and each with the wide one between them."""
    body = """
        @!%p1 bra END; setp.eq.u32 %p3, %r2, 1;
        @%p3 atom.global.gpu.relaxed.add.u32 %r5, [%rd1], 1;
        @!%p3 atom.global.cta.relaxed.add.u32 %r5, [%rd1], 1;
    END:
    """
    races = run(body, blocks=3, schedule=schedule).races
    scopes = {frozenset(i.modifiers[1:3] for i in (r.first, r.second)) for r in races}
    assert {len(pair) for pair in scopes} == {1, 2}
