"""A check catches every change of a kernel that matters.

What is missed is listed with the reason: such a change makes no difference.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ptx.mutations import Caught, all_mutants, verdict
from ptx.shared_runs import COMPILERS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*bfloat16 parameters are rounded to nearest"),
]

# of the usual tests: whatever lets other blocks, or other threads of a block, know what one has done
ORDER = ("fence dropped", "fence weakened", "atom relaxed", "atom of block scope")
USUAL = {
    "clip": ORDER,
    "counted": ORDER,
    "ball": ORDER,
    "everything": ("fence dropped", "atom relaxed"),
    "clip, shifted": ("alignment not tested",),
}
MORE = {
    "clip": ("barrier dropped", "store moved behind", "store moved before"),
    "counted": ("barrier dropped",),
    "turns": ("barrier dropped", *ORDER),
    "ball": ("barrier dropped",),
    "everything": ("fence weakened",),
    "8bit": ("barrier dropped", "warp barrier dropped"),
    "8bit, shifted": ("alignment not tested",),
}


def _needs(compiler: str) -> None:
    reason = COMPILERS[compiler].status().reason
    if reason:
        pytest.skip(reason)


def _missed(compiler: str, run: str, kinds: tuple[str, ...] = ()) -> list[Caught]:
    found = [
        Caught(compiler, run, kernel, mutant, verdict(run, compiler, kernel, mutant))
        for kernel, mutant in all_mutants(compiler, run, kinds)
    ]
    if not found:
        pytest.skip(f"{compiler} emits none of {', '.join(kinds)} in this run")
    return [one for one in found if not one.check]


def _counts_alone(one: Caught) -> bool:
    """A fence of arrive() in block.cuh: the thread that counts reads and writes all that the count is about."""
    return one.mutant.kind == "fence weakened" and one.run in ("counted", "turns", "everything")


# reasons why a mutant makes no difference, and which they are
EQUIVALENT: dict[str, Callable[[Caught], bool]] = {
    "one thread has the whole pattern, for which a fence of acquire and release is enough": _counts_alone,
}


def _check(compiler: str, run: str, kinds: tuple[str, ...]) -> None:
    missed = _missed(compiler, run, kinds)
    assert not [str(one.mutant) for one in missed if not any(of(one) for of in EQUIVALENT.values())]


@pytest.mark.parametrize("run", USUAL)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_what_orders_is_needed(compiler: str, run: str) -> None:
    _needs(compiler)
    assert [*all_mutants(compiler, run, USUAL[run])]  # else nothing is tested
    _check(compiler, run, USUAL[run])


@pytest.mark.ptx
@pytest.mark.parametrize("run", MORE)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_more_mutants(compiler: str, run: str) -> None:
    _needs(compiler)
    _check(compiler, run, MORE[run])


BOUNDS = ("clip", "clip, special", "clip, shifted", "counted", "turns", "ball")
# of Triton's kernels for fewer bits some are missed: two bounds of an element stand there side by side
BOUNDS_OF_NVCC = ("8bit", "8bit, shifted", "8bit, zeroing", "everything")


@pytest.mark.ptx
@pytest.mark.parametrize(
    "compiler, run",
    [*((c, run) for c in COMPILERS for run in BOUNDS), *(("nvcc", run) for run in BOUNDS_OF_NVCC)],
)
def test_bounds(compiler: str, run: str) -> None:
    _needs(compiler)
    every = [*all_mutants(compiler, run, ("bound off by one",))]
    assert every
    assert [str(m) for kernel, m in every if not verdict(run, compiler, kernel, m)] == []
