"""Contestants take part, or give a reason why they do not."""

from __future__ import annotations

import dataclasses

from bench_rows import CONTESTANTS, FAST, TINY, TRIO, entry_of
from stackelberg_fused.benchmarks import peers
from stackelberg_fused.benchmarks.harness import run_row
from stackelberg_fused.benchmarks.preparation import SKIPPED


def test_peers_that_are_not_installed_are_skipped_with_a_reason():
    absent = dataclasses.replace(
        CONTESTANTS["torch-optimi"],
        available=lambda device: peers.installed("no_such_package_here", ("cpu",), device),
    )
    entry = entry_of(run_row(TINY, [*TRIO, absent], FAST, None), "torch-optimi")
    assert entry["status"] == SKIPPED
    assert entry["reason"] == "not installed"


def test_every_contestant_says_whether_it_can_run():
    for contestant in CONTESTANTS.values():
        available, reason = contestant.available("cpu")
        assert available or reason
