"""Reasons why a mutant does no harm hold where they are true, and nowhere else: harm that no check happens to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ptx import harmless, triton_launches
from ptx.caught_launch import CaughtLaunch
from ptx.harmless import reason_of
from ptx.kernel import Kernel
from ptx.lanes import Fault
from ptx.launch import Observer
from ptx.mutants import NO_BARRIER, OFF_BY_ONE, UNGUARDED, WEAKENED, mutants
from ptx.mutations import GROUPS
from ptx.nvcc_build import unavailable
from ptx.tiny import kernel_of, run
from ptx.trials import Case, cases, is_allowed, source_of

pytestmark = pytest.mark.slow  # as test_mutations.py, without which it is about nothing

THREADS = 64
CAUGHT = CaughtLaunch("nobody", "", "tiny", 1, THREADS, b"")


def outcomes(monkeypatch: pytest.MonkeyPatch, kind: str, body: str) -> list[str]:
    """What becomes of the mutants of a kind: "caught", or why they do no harm, or "" ."""
    kernel = kernel_of(body, THREADS)
    expected = run(kernel, blocks=1, threads=THREADS)
    assert not [race for race in expected.races if not is_allowed(race)]

    def checked(
        case: Case,
        name: str,
        changed: Kernel,
        observers: Callable[[CaughtLaunch], Sequence[Observer]] = lambda caught: (),
    ) -> str:
        try:
            found = run(changed, blocks=1, threads=THREADS, observers=observers(CAUGHT))
        except Fault:
            return "a fault"
        if any(not is_allowed(race) for race in found.races):
            return "race"
        return "" if (found.data == expected.data).all() else "values"

    monkeypatch.setattr(harmless, "checked", checked)
    every = range(len(kernel.decoded))
    limits = [i for i in every if kernel.text.instructions[i].opcode.startswith("setp.lt")]
    made = [m for m in mutants(kernel, every, limits) if m.kind == kind]
    assert made
    tried = [Case("nvcc", "project", mutant, ("tiny",)) for mutant in made]
    return [checked(case, "", case.mutant.changed()) or reason_of(case) for case in tried]


UNUSED = "what further threads load or store is used by nobody"
TAKE = "bar.sync 0; ld.shared.u32 %r6, [room]; st.global.u32 [%rd4], %r6;"
OWN = "shl.b32 %r9, %r1, 2; mov.u32 %r8, room; add.u32 %r8, %r8, %r9;"


@pytest.mark.parametrize(
    "body, outcome",
    [
        # all store the same, to one place, as Triton does with what a warp has in common
        (f"@%p1 st.shared.u32 [room], %r10; {TAKE}", UNUSED),
        (f"@%p1 st.shared.u32 [room], %r1; {TAKE}", "race"),
        # a place that nobody loads, and one that holds something already, by chance the same
        (f"{OWN} @%p1 st.shared.u32 [%r8], %r1; {TAKE}", UNUSED),
        (
            f"{OWN} mov.u32 %r5, 0; st.shared.u32 [%r8], %r5; bar.sync 0; ld.global.u32 %r4, [%rd4];"
            "@%p1 st.shared.u32 [%r8], %r4; ld.shared.u32 %r6, [%r8]; st.global.u32 [%rd4], %r6;",
            "",
        ),
        # what is loaded is used where the predicate holds, or everywhere, and is by chance what was there
        ("@%p1 ld.global.u32 %r5, [%rd4]; @%p1 st.global.u32 [%rd4], %r5;", UNUSED),
        ("mov.u32 %r5, 0; @%p1 ld.global.u32 %r5, [%rd4]; st.global.u32 [%rd4], %r5;", ""),
        ("mov.u32 %r5, 0; @%p1 ld.global.u32 %r5, [%rd4]; add.u32 %r6, %r5, 1;", UNUSED),
    ],
)
def test_dropped_predicates(body: str, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(monkeypatch, UNGUARDED, body)[0] == outcome


@pytest.mark.parametrize(
    "predicate, holds",
    [
        ("mov.pred %p3, -1;", True),
        ("setp.lt.u32 %p3, %r1, 64;", True),
        ("and.b32 %r5, %r1, 255; setp.lt.u32 %p4, %r5, 64; and.pred %p3, %p4, %p4;", True),
        # true here: of the launch, of memory, and of few threads
        ("setp.lt.u32 %p3, %r2, 64;", False),
        ("setp.lt.u32 %p3, %r3, 64;", False),
        ("ld.global.u32 %r5, [%rd2]; setp.lt.u32 %p3, %r5, 64;", False),
        # as of the length of a row, but what it keeps back is no load of the record
        ("ld.global.u64 %rd9, [%rd2]; add.s64 %rd9, %rd9, 1; setp.gt.s64 %p3, %rd9, 0;", False),
    ],
)
def test_predicates_that_always_hold(
    predicate: str, holds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"{predicate} @%p3 st.global.u32 [%rd4], %r10;"
    reason = "the predicate holds in every thread of a block"
    assert outcomes(monkeypatch, UNGUARDED, body) == [reason if holds else ""]


LOOP = """
    mov.u32 %r5, 0; mov.u32 %r7, {count};
ROUND:
    add.u32 %r6, %r5, %r1; setp.gt.u32 %p4, %r7, %r6;
    mul.wide.u32 %rd5, %r6, 4; add.s64 %rd6, %rd1, %rd5;
    {store}
    add.u32 %r5, %r5, 64; setp.lt.u32 %p3, %r5, %r7; @%p3 bra ROUND;
"""


@pytest.mark.parametrize(
    "count, store, outcome",
    [
        (64, "@%p4 st.global.u32 [%rd6], %r10;", "a further round accesses nothing but tables"),
        # no round more here, though there might be elsewhere
        (63, "@%p4 st.global.u32 [%rd6], %r10;", ""),
        # a store more, which changes nothing here
        (64, "@%p4 st.global.u32 [%rd6], %r10; st.shared.u32 [room], 1;", ""),
        (64, "st.global.u32 [%rd6], %r10;", "a fault"),
    ],
)
def test_limits(count: int, store: str, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = LOOP.format(count=count, store=store)
    assert outcomes(monkeypatch, OFF_BY_ONE, body)[-1] == outcome


@pytest.mark.parametrize(
    "between, is_needed",
    [
        ("add.u32 %r5, %r1, 1;", False),
        ("ld.param.u64 %rd9, [flag];", False),
        ("@%p1 bra ON; add.u32 %r5, %r1, 1; ON:", False),
        ("ld.global.u32 %r5, [%rd4];", True),
        ("@%p1 bra ON; st.shared.u32 [room], %r5; ON:", True),
        ("AGAIN: @!%p2 bra AGAIN; st.shared.u32 [room], %r10;", True),
    ],
)
def test_barriers(between: str, is_needed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(monkeypatch, NO_BARRIER, f"bar.sync 0; {between} bar.sync 0;")
    nothing = "it follows another barrier, with no access between them"
    assert found == ["", "" if is_needed else nothing]  # the first is behind the kernel's begin


@pytest.mark.ptx
@pytest.mark.skipif(bool(unavailable()), reason=unavailable())
def test_fences_of_a_ball_are_not_those_of_a_count() -> None:
    found = [*cases("nvcc", "step", ["ball"], [WEAKENED])]
    assert len(found) == 2
    assert not any(map(reason_of, found))
    (_, runs) = GROUPS["float32"]
    assert "ball" in runs


@pytest.mark.ptx
@pytest.mark.filterwarnings("ignore:.*bfloat16 parameters are rounded to nearest")
def test_the_barrier_before_a_balls_count_is_needed() -> None:
    """It has the same source as the one that other barriers make good for."""
    if reason := triton_launches.unavailable():
        pytest.skip(reason)
    found = [*cases("triton", "step", ["everything"], [NO_BARRIER])]
    of_balls = [case for case in found if source_of(case).startswith("project.py, report_tile")]
    assert [bool(reason_of(case)) for case in of_balls].count(True) == 1
    assert len(of_balls) > 1
