"""Mutants of the kernels that compilers emit, and which check catches each.

`python -m ptx.mutations` (or `make ptx-mutants`) prints, for every kind of change, how many mutants were made, which
check caught how many, why others do no harm (`harmless`), and those that nothing caught. Only instructions that a run
executes are changed. A mutant is tried in all runs that execute what it changes, until one of them catches it.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .harmless import reason_of
from .shared_runs import COMPILERS
from .trials import Case, cases, checked, executed

# Runs of one kernel each, but for what Triton compiles apart, and which launch's it is. Those of MORE are longer, and
# tried where the others miss something.
GROUPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "statistics": ("statistics", ("clip", "clip, special", "clip, shifted")),
    "float32": ("step", ("counted", "turns", "ball", "clip, shifted")),
    "projections": ("project", ("ball", "simplex")),
    "fewer bits": ("step", ("8bit", "8bit, shifted", "8bit, zeroing", "everything")),
}
MORE = {"fewer bits": ("everything, many",)}


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        case: the mutant.
        check: what caught it; empty: nothing.
        reason: why it does no harm, where nothing caught it; empty: nobody knows.
    """

    case: Case
    check: str
    reason: str = ""

    @property
    def is_missed(self) -> bool:
        return not self.check and not self.reason


def judged(case: Case, more_runs: Sequence[str] = ()) -> Verdict:
    """What becomes of a mutant in its runs, and in more of them where these miss it and it might do harm."""
    for run in case.runs:
        if name := checked(case, run, case.mutant.changed()):
            return Verdict(case, name)
    reason = reason_of(case)
    for run in () if reason else more_runs:
        is_new = run not in case.runs and case.mutant.at in executed(case, run)
        if is_new and (name := checked(case, run, case.mutant.changed())):
            return Verdict(case, name)
    return Verdict(case, "", reason)


def table(found: Sequence[Verdict]) -> str:
    """By compiler, kind of launch and of change: how many were made, caught by which check, harmless, and missed."""
    rows: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for one in found:
        outcome = one.check or ("harmless" if one.reason else "MISSED")
        rows[one.case.compiler, one.case.kind, one.case.mutant.kind][outcome] += 1
    lines = [
        "| compiler | launch | change | made | caught by | harmless | missed |",
        "|---" * 7 + "|",
    ]
    for key, counts in rows.items():
        made, harmless, missed = sum(counts.values()), counts["harmless"], counts["MISSED"]
        caught = [f"{n} {name}" for name, n in counts.items() if name not in ("harmless", "MISSED")]
        lines.append(
            f"| {' | '.join(key)} | {made} | {', '.join(caught)} | {harmless} | {missed} |"
        )
    return "\n".join(lines)


def main(wanted: Sequence[str]) -> None:
    """Print the tables of some groups or compilers (default: all), and what was not caught."""
    for compiler in COMPILERS:
        for group, (kind, runs) in GROUPS.items():
            if (set(wanted) & set(COMPILERS) and compiler not in wanted) or (
                set(wanted) & set(GROUPS) and group not in wanted
            ):
                continue
            began = time.process_time()
            more = MORE.get(group, ())
            found = [judged(case, more) for case in cases(compiler, kind, runs)]
            print(f"{compiler}, {group}: {time.process_time() - began:.0f} s\n\n{table(found)}\n")
            for one in found:
                if not one.check:
                    print(
                        f"{one.reason or 'MISSED'}: {one.case.mutant} ({'; '.join(one.case.runs)})"
                    )
            print(flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1:])
