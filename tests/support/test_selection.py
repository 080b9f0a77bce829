"""The sample of `make test-quick`, and the order in which several processes take tests."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from paths import ROOT, TESTS
from patience import patience
from selection import MOST_CASES, quick, spread
from still_running import StillRunning


class _Item:
    """Stand-in for what is asked of a pytest.Item."""

    def __init__(
        self, name: str, *marks: str, group: str = "", file: str = "f.py", **params: Any
    ) -> None:
        self.nodeid = f"{file}::{name}"
        self.path = Path(file)
        self.marks: dict[str, Any] = {mark: getattr(pytest.mark, mark).mark for mark in marks}
        if group:
            self.marks["xdist_group"] = pytest.mark.xdist_group(group).mark
        if params:
            self.nodeid += f"[{'-'.join(map(str, params.values()))}]"
            self.callspec = SimpleNamespace(params=params)

    def get_closest_marker(self, name: str) -> Any:
        return self.marks.get(name)


def test_every_value_of_a_matrix_occurs_in_the_sample() -> None:
    values = {"a": range(3), "b": [[1], [2]], "c": "xyz"}
    matrix = [
        _Item("m", **dict(zip(values, v, strict=True))) for v in itertools.product(*values.values())
    ]
    kept = quick([_Item("plain"), *matrix, _Item("slow", "slow"), _Item("gpu", "gpu", "skip")])
    assert kept[0].nodeid == "f.py::plain"
    assert 3 + 1 <= len(kept) <= MOST_CASES + 1
    for name, expected in values.items():
        assert {str(item.callspec.params[name]) for item in kept[1:]} == set(map(str, expected))
    assert kept == quick([kept[0], *matrix])


def test_no_test_has_many_cases_in_the_sample() -> None:
    assert len(quick([_Item("m", a=i) for i in range(100)])) == MOST_CASES


def test_slow_tests_lie_among_the_others_and_not_at_the_end() -> None:
    fast = [_Item(f"t{i}", file="a.py") for i in range(90)]
    one = [_Item(f"s{i}", "slow", file="b.py") for i in range(4)]
    two = [_Item("g1", "slow", group="g", file="b.py"), _Item("g2", "slow", group="g", file="c.py")]
    order = spread([one[0], *fast[:50], two[0], *one[1:], *fast[50:], two[1]])
    assert order == [*one, *fast[:30], *two, *fast[30:]]


@pytest.mark.slow
def test_the_quick_sample_has_tests_of_every_folder() -> None:
    command = [sys.executable, "-m", "pytest", "--quick", "--collect-only", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patience(15))
    assert done.returncode == 0, done.stdout[-3000:]
    names = [line for line in done.stdout.splitlines() if "::" in line]
    folders = {path.parent.relative_to(TESTS).parts[0] for path in TESTS.glob("*/test_*.py")}
    assert {name.split("/")[1] for name in names} >= folders
    assert len(names) < 4000  # of some ten thousand


def test_silence_is_explained() -> None:
    said: list[str] = []
    watch = StillRunning(said.append, after=0.0)
    watch.look()
    watch.pytest_runtest_logstart("a.py::test_long")
    watch.look()
    watch.pytest_runtest_logfinish("a.py::test_long")
    watch.look()
    assert said[0] == said[2] == "still running: collection"
    assert said[1].startswith("still running: a.py::test_long (")
    StillRunning(said.append, after=1e9).look()
    assert len(said) == 3
