"""What the compilers emit has no race, and gives the bits of `cpu`, wherever threads or blocks share data."""

from __future__ import annotations

import pytest

from ptx.launch import BACKWARDS, SERIAL, interleaved
from ptx.mutations import is_allowed
from ptx.shared_runs import COMPILERS, RUNS, check

USUAL = ("clip", "counted", "turns", "zeroing", "ball", "simplex", "8bit", "everything")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*bfloat16 parameters are rounded to nearest"),
]


def _needs(compiler: str) -> None:
    reason = COMPILERS[compiler].status().reason
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=() if run in USUAL else pytest.mark.ptx) for run in RUNS]
)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_races_and_the_bits_of_cpu(compiler: str, run: str) -> None:
    _needs(compiler)
    found = check(run, compiler)
    assert not [str(race) for _, races in found.races for race in races if not is_allowed(race)]
    assert found.equal


@pytest.mark.ptx
@pytest.mark.parametrize("run", [run for run in RUNS if "shifted" not in run])
@pytest.mark.parametrize("compiler", COMPILERS)
def test_in_other_orders_of_blocks_and_warps(compiler: str, run: str) -> None:
    """The same verdict, and the same bits: whoever is the last block."""
    _needs(compiler)
    for schedule in (SERIAL, BACKWARDS, interleaved(1), interleaved(2, warps=True)):
        found = check(run, compiler, schedule=schedule)
        assert not [str(race) for _, races in found.races for race in races if not is_allowed(race)]
        assert found.equal, schedule
