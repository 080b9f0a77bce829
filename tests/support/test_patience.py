"""Time limits of tests, and that no test has one of its own."""

from __future__ import annotations

import re

import patience as module
import pytest
from paths import TESTS
from patience import FACTOR, LEAST, patience


def test_a_limit_is_a_multiple_of_what_a_process_takes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("STACKELBERG_TEST_PATIENCE", raising=False)
    monkeypatch.setattr(module.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(module.os, "getloadavg", lambda: (0.5, 0.0, 0.0), raising=False)
    assert patience(1) == LEAST
    assert patience(100) == 100 * FACTOR
    monkeypatch.setattr(module.os, "getloadavg", lambda: (12.0, 0.0, 0.0))
    assert patience(100) == 6 * 100 * FACTOR
    monkeypatch.setenv("STACKELBERG_TEST_PATIENCE", "3")
    assert patience(100) == 18 * 100 * FACTOR
    monkeypatch.setenv("STACKELBERG_TEST_PATIENCE", "0")
    assert patience(100) is None


def test_no_test_has_a_limit_of_its_own() -> None:
    fixed = re.compile(r"\btimeout=(?!patience\()")
    places = [
        f"{path.relative_to(TESTS)}:{number}"
        for path in sorted(TESTS.rglob("*.py"))
        if path.name != "test_patience.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if fixed.search(line)
    ]
    assert places == []
