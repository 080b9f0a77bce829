"""Separate processes: which of the turns count."""

from __future__ import annotations

from stackelberg_fused.benchmarks.separate_processes import _summary


def test_turns_in_a_noisy_moment_count_only_if_all_were():
    def turn(ns: float, quiet: bool) -> dict:
        load = {"other_processes_cpus": 0.0 if quiet else 0.5, "stolen_cpus": 0.0, "quiet": quiet}
        return {"samples_ns": [ns], "load": load}

    summary = _summary([turn(1.0, True), turn(9.0, False), turn(3.0, True)])
    assert (summary["samples_ns"], summary["p50_ns"], summary["turns"]) == ([1.0, 3.0], 2.0, 2)
    assert summary["load"]["quiet"]
    noisy = _summary([turn(1.0, False), turn(9.0, False)])
    assert noisy["p50_ns"] == 5.0
    assert noisy["load"] == {"other_processes_cpus": 0.5, "stolen_cpus": 0.0, "quiet": False}
