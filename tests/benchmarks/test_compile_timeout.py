"""Compilations under a time limit."""

from __future__ import annotations

import dataclasses
import time

from bench_rows import CONTESTANTS, FAST, TINY, TRIO, entry_of
from stackelberg_fused.benchmarks.harness import run_row
from stackelberg_fused.benchmarks.preparation import TIMED


def test_a_compilation_that_takes_too_long_is_cut_off():
    def make(groups):
        optimizer, step = CONTESTANTS["torch for-loop"].make(groups)
        return optimizer, lambda: (time.sleep(30), step())

    slow = dataclasses.replace(
        CONTESTANTS["torch compiled"], make=make, available=lambda _device: (True, "")
    )
    settings = dataclasses.replace(FAST, compile=True, compile_seconds=0.5)
    row = run_row(TINY, [*TRIO, slow], settings, None)
    assert entry_of(row, "torch compiled")["reason"] == "compilation took longer than 0.5 s"
    assert entry_of(row, "ours cpu")["status"] == TIMED
