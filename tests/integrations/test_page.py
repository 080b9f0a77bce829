"""docs/integrations.md: the tests that its table names exist, and its versions are those that are pinned."""

from __future__ import annotations

import re

from paths import ROOT

PAGE = (ROOT / "docs" / "integrations.md").read_text()
TABLE = PAGE.partition("## What was tested")[2]


def test_tests_that_the_table_names_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", TABLE)
    assert len(named) > 20
    for file, test in named:
        texts = [path.read_text() for path in (ROOT / "tests").rglob(file)]
        assert any(f"\ndef {test}(" in text for text in texts), f"{file}::{test}"


def test_every_row_has_a_test_or_says_that_it_has_none() -> None:
    rows = re.findall(r"^\| (.*) \|$", TABLE, re.MULTILINE)[2:]
    assert len(rows) > 14
    for row in rows:
        _, *cells, tests = row.split(" | ")
        assert len(cells) == 4
        assert set(cells) <= {"yes", "shards", "-"}, row
        assert "::" in tests, row


def test_versions_are_those_that_are_pinned() -> None:
    pins: dict[str, str] = {}
    for name in ("integrations", "no-deps", "test", "run"):
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        for line in text.splitlines():
            found = re.match(r"([\w-]+)==([\w.]+)", line)
            if found and "<" not in line:
                pins[found[1]] = found[2]
    said = dict(re.findall(r"([\w-]+) (\d+\.\d+\.\d+)", TABLE.partition("|")[0]))
    assert len(said) == 10
    for name, version in said.items():
        assert pins[name] == version, name
