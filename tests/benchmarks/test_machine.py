"""The machine's memory decides which rows are measured."""

from __future__ import annotations

import pytest
from bench_rows import FAST, TINY, TRIO
from stackelberg_fused.benchmarks import machine
from stackelberg_fused.benchmarks.harness import run_row


def test_a_row_that_does_not_fit_in_memory_is_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "available_bytes", lambda device: 1000)
    row = run_row(TINY, TRIO, FAST, None)
    assert row["reason"].startswith("needs ")
    assert row["entries"] == []
