"""Chooses the tests of `--quick`, and the order in which several processes run tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from zlib import crc32

import pytest

MOST_CASES = 6


def quick(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """A sample, in the order of the items; the same at every call and in every process.

    Of a test with parameters a case stays if it has a value of one of them that no case before it had, in an order
    that mixes the values, but `MOST_CASES` at most. Tests that are slow or skipped fall out.
    """
    marks = ("slow", "large", "skip")
    cases = [item for item in items if not any(map(item.get_closest_marker, marks))]
    seen: dict[str, set[tuple[str, str]]] = defaultdict(set)
    kept = set()
    count: dict[str, int] = defaultdict(int)
    for item in sorted(cases, key=lambda item: crc32(item.nodeid.encode())):
        given = item.callspec.params if hasattr(item, "callspec") else {"": None}
        # by what is equal among them, not by the text: an address in it differs from process to process
        values = {(name, repr(value)) for name, value in given.items()}
        test = item.nodeid.partition("[")[0]
        known = seen[test]
        if values - known and count[test] < MOST_CASES:
            known |= values
            kept.add(item)
            count[test] += 1
    return [item for item in items if item in kept]


def spread(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The same tests, slow ones among the others: while one process is in a slow one, others show that it goes on.

    Slow tests of one group or file stay together, since they share what they prepare. The last third has none, so that
    no process waits long for another at the end.
    """
    blocks: dict[str, list[pytest.Item]] = defaultdict(list)
    others = []
    for item in items:
        if item.get_closest_marker("slow") is None:
            others.append(item)
            continue
        group = item.get_closest_marker("xdist_group")
        blocks[str(group.args) if group else str(item.path)].append(item)
    between = 2 * len(others) // 3 // max(1, len(blocks))
    order: list[pytest.Item] = []
    for number, block in enumerate(sorted(blocks.values(), key=len, reverse=True)):
        order += [*block, *others[number * between : (number + 1) * between]]
    return order + others[len(blocks) * between :]
