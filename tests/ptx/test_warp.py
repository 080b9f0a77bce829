"""shfl, vote and redux (sections 9.7.9 and 9.7.13): all of a warp, and only its own."""

from __future__ import annotations

import numpy as np
import pytest

from .lanes import Fault
from .one_instruction import apply, kernel, run
from .parser import NotUnderstood

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

ALL = "0xffffffff"
RANDOM = np.random.default_rng(0).integers(0, 1 << 32, 128, np.uint32)
AT = "mul.wide.u32 %d1, %i, {1};\nadd.s64 %d1, %a{0}, %d1;\n"


def shuffle(mode: str, b: int, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and predicates of four warps."""
    values, inside = RANDOM.copy(), np.zeros(128, np.uint32)
    run(
        AT.format(0, 4) + "ld.global.u32 %r1, [%d1];\n"
        f"shfl.sync.{mode}.b32 %r2|%p1, %r1, {b}, {c}, {ALL};\nselp.u32 %r3, 1, 0, %p1;\n"
        "st.global.u32 [%d1], %r2;\n" + AT.format(1, 4) + "st.global.u32 [%d1], %r3;",
        *(values, inside),
        threads=64,
        grid=2,
    )
    return values, inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles_of_all_distances_within_all_segments(mode: str) -> None:
    """By the steps that the ISA writes down."""
    for width in (32, 16, 8, 4, 2, 1):
        for clamp in {0 if mode == "up" else 31, 5}:
            for b in (0, 1, 2, 3, 5, 8, 15, 16, 31, 33):
                c = (32 - width) << 8 | clamp
                values, inside = shuffle(mode, b, c)
                for thread in range(128):
                    lane, first = thread % 32, thread - thread % 32
                    bval, cval, segmask = b & 31, c & 31, c >> 8 & 31
                    max_lane = (lane & segmask) | (cval & ~segmask & 31)
                    min_lane = lane & segmask
                    j, holds = {
                        "up": (lane - bval, lane - bval >= max_lane),
                        "down": (lane + bval, lane + bval <= max_lane),
                        "bfly": (lane ^ bval, lane ^ bval <= max_lane),
                        "idx": (
                            min_lane | (bval & ~segmask & 31),
                            min_lane | (bval & ~segmask & 31) <= max_lane,
                        ),
                    }[mode]
                    if mode in ("bfly", "idx"):
                        holds = j <= max_lane
                    assert inside[thread] == holds, (width, b, thread)
                    assert values[thread] == RANDOM[first + (j if holds else lane)]


def test_votes_count_the_warps_own_threads() -> None:
    out = np.zeros((96, 4), np.uint32)
    run(
        f"setp.ge.u32 %p1, %i, 33;\nvote.sync.any.pred %p2, %p1, {ALL};\n"
        f"vote.sync.all.pred %p3, %p1, {ALL};\nvote.sync.any.pred %p4, !%p1, {ALL};\n"
        f"vote.sync.ballot.b32 %r4, %p1, {ALL};\n"
        "selp.u32 %r1, 1, 0, %p2;\nselp.u32 %r2, 1, 0, %p3;\nselp.u32 %r3, 1, 0, %p4;\n"
        + AT.format(0, 16) + "st.global.v4.b32 [%d1], {%r1, %r2, %r3, %r4};",
        out,
        threads=96,
    )  # fmt: skip
    assert out[::32].tolist() == [[0, 0, 1, 0], [1, 0, 1, 0xFFFFFFFE], [1, 1, 0, 0xFFFFFFFF]]
    assert (out.reshape(3, 32, 4) == out[::32, None]).all()


@pytest.mark.parametrize("name, reduce", [("add", sum), ("min", min), ("max", max)])
def test_reductions_of_a_warp(name: str, reduce: object) -> None:
    for type_, dtype in (("u32", np.uint32), ("s32", np.int32)):
        values = RANDOM.view(dtype)
        found = np.zeros(128, dtype)
        run(
            AT.format(0, 4) + f"ld.global.u32 %r1, [%d1];\nredux.sync.{name}.{type_} %r2, %r1, {ALL};\n"
            + AT.format(1, 4) + "st.global.u32 [%d1], %r2;",
            *(values.copy(), found),
            threads=128,
        )  # fmt: skip
        expected = [reduce([int(v) for v in warp]) for warp in values.reshape(4, 32)]
        assert [int(v) & 0xFFFFFFFF for v in found[::32]] == [v & 0xFFFFFFFF for v in expected]
        assert (found.reshape(4, 32) == found[::32, None]).all()


def test_a_value_that_is_undefined_in_one_lane_is_so_where_it_arrives() -> None:
    body = (
        "setp.ne.u32 %p1, %i, 3;\n@%p1 mov.u32 %r1, 0;\n"
        f"shfl.sync.bfly.b32 %r2, %r1, 1, 31, {ALL};\nsetp.eq.u32 %p2, %i, {{0}};\n"
        "setp.eq.s32 %p3, %r2, 0;\n@!%p2 bra END;\n@%p3 bra END;\nEND:\n"
    )
    run(body.format(3))
    with pytest.raises(Fault, match="predicate is undefined"):
        run(body.format(2))
    with pytest.raises(Fault, match="predicate is undefined"):
        run(f"shfl.sync.idx.b32 %r2, %r9, 0, 31, {ALL};\nsetp.eq.s32 %p3, %r2, 0;\n@%p3 ret;")
    for undefined in (
        f"vote.sync.any.pred %p2, %p9, {ALL}",
        f"redux.sync.add.u32 %r2, %r9, {ALL}",
        f"shfl.sync.idx.b32 %r2, %i, %r9, 31, {ALL}",
        "shfl.sync.idx.b32 %r2, %i, 0, 31, %r9",
    ):
        with pytest.raises(Fault, match="undefined"):
            run(undefined + ";")


def test_all_threads_of_a_warp_have_to_take_part() -> None:
    shuffle_ = "shfl.sync.bfly.b32 %r2, %i, 1, 31, {};"
    with pytest.raises(Fault, match="not all threads of the warp are to take part"):
        run(shuffle_.format("0x0000ffff"))
    with pytest.raises(Fault, match="wait for ever"):
        run("setp.lt.u32 %p1, %i, 16;\n@%p1 ret;\n" + shuffle_.format(ALL))
    with pytest.raises(Fault, match="wait for ever"):
        run("setp.lt.u32 %p1, %i, 16;\n@%p1 " + shuffle_.format(ALL))
    # whole warps may stay away
    run("setp.lt.u32 %p1, %i, 32;\n@%p1 " + shuffle_.format(ALL) + "\n@!%p1 ret;", threads=64)


@pytest.mark.parametrize(
    "instruction",
    [
        "shfl.bfly.b32 %r1, %r2, 1, 31",
        "vote.sync.uni.pred %p1, %p2, -1",
        "redux.sync.and.b32 %r1, %r2, -1",
        "redux.sync.min.f32 %r1, %r2, -1",
        "match.any.sync.b32 %r1, %r2, -1",
        "activemask.b32 %r1",
        "elect.sync %r1|%p1, -1",
    ],
)
def test_a_spelling_that_is_not_known_is_an_error_that_names_it(instruction: str) -> None:
    with pytest.raises(NotUnderstood) as raised:
        kernel(instruction + ";")
    assert instruction in str(raised.value)


def test_the_harness_gives_each_element_its_own_result() -> None:
    x = np.arange(300, dtype=np.int32)
    assert apply("mul.lo.s32", np.int32, x, "-3").tolist() == [-3 * k for k in range(300)]
