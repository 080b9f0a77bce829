"""A check catches every change of a kernel that matters; of the others `harmless` shows that they do not."""

from __future__ import annotations

import pytest

from ptx.mutants import UNTESTED, WEAKENED
from ptx.mutations import GROUPS, MORE, judged
from ptx.shared_runs import COMPILERS
from ptx.trials import cases

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*bfloat16 parameters are rounded to nearest"),
]

# Of the usual tests: whatever lets other blocks know what one has done. What blocks add to sums by is the same in the
# launch for fewer bits as in the others, but takes many blocks, and seconds.
ORDER = ("fence dropped", WEAKENED, "atom relaxed", "atom of block scope")
USUAL = {
    "statistics": ("clip", ORDER),
    "float32": ("counted", ORDER),
    "float32, ball": ("ball", ORDER),
    "fewer bits": ("everything, few", ("fence dropped", WEAKENED, "atom relaxed")),
    "statistics, alignment": ("clip, shifted", (UNTESTED,)),
    "float32, alignment": ("clip, shifted", (UNTESTED,)),
}


def _needs(compiler: str) -> None:
    reason = COMPILERS[compiler].status().reason
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_what_orders_is_needed(compiler: str, name: str) -> None:
    _needs(compiler)
    run, kinds = USUAL[name]
    group = name.partition(",")[0]
    kind, runs = GROUPS[group]
    more = *MORE.get(group, ()), *runs
    found = [judged(case, more) for case in cases(compiler, kind, [run], kinds)]
    assert not [str(one.case.mutant) for one in found if one.is_missed]
    assert found


@pytest.mark.ptx
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_mutant_is_missed(compiler: str, group: str) -> None:
    """Of all kinds: barriers, stores, bounds and predicates too."""
    _needs(compiler)
    found = [judged(case, MORE.get(group, ())) for case in cases(compiler, *GROUPS[group])]
    assert not [str(one.case.mutant) for one in found if one.is_missed]
    assert found
