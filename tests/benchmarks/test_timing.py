"""The benchmark: clocks, rounds, ratios, and processes of their own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest
from bench_rows import FIELD, HASTE, TINY
from stackelberg_fused.benchmarks import (
    harness,
    host,
    peers,
    preparation,
    separate_processes,
    timing,
    workloads,
)
from stackelberg_fused.benchmarks.clean_process import Alone, AloneFailed

# --- timing


def test_rounds_are_interleaved_and_preparation_is_not_timed(monkeypatch):
    clock = 0
    calls: list[str] = []

    def spend(ns: int) -> None:
        nonlocal clock
        clock += ns

    monkeypatch.setattr(timing, "now", lambda: clock)
    actions = {
        name: timing.Action(
            lambda name=name: calls.append(name) or spend(4_000_000),
            before=lambda: spend(5_000_000),
        )
        for name in "abc"
    }
    samples = timing.interleave(actions, rounds=4, seconds=10)
    assert samples == {name: [4e6] * 4 for name in "abc"}
    # an untimed call in front of each timed one
    rounds = [calls[-24:][i : i + 6] for i in range(0, 24, 6)]
    assert all(r[::2] == r[1::2] and sorted(r[::2]) == ["a", "b", "c"] for r in rounds)


def test_time_ends_the_rounds_but_not_before_the_third(monkeypatch):
    clock = 0

    def spend() -> None:
        nonlocal clock
        clock += 4_000_000

    monkeypatch.setattr(timing, "now", lambda: clock)
    for seconds, rounds in [(0.0, 3), (4.5 * 8e-3, 5), (1.0, 9)]:
        samples = timing.interleave({"only": timing.Action(spend)}, rounds=9, seconds=seconds)
        assert samples == {"only": [4e6] * rounds}


@pytest.mark.parametrize(
    ("cost", "inner", "warm"),
    [(1_000, 50, 50), (400_000, 5, 12), (30_000_000, 1, 1), (200_000_000, 1, 0)],
)
def test_bursts_and_untimed_calls_follow_the_cost(monkeypatch, cost, inner, warm):
    clock = 0

    def spend() -> None:
        nonlocal clock
        clock += cost

    monkeypatch.setattr(timing, "now", lambda: clock)
    action = timing.Action(spend)
    action.calibrate()
    assert (action.inner, action.warm) == (inner, warm)


def test_quantiles_and_ratios():
    assert timing.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert timing.quantiles([1.0] * 9) == {"p20_ns": 1.0, "p50_ns": 1.0, "p80_ns": 1.0}
    assert timing.median_ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3.0


@pytest.mark.parametrize(("apart_ns", "value"), [(720.0, 9.0), (1100.0, 10.0)])
def test_the_lower_of_both_ratios_counts(apart_ns, value):
    quiet = {"quiet": True}
    row = {
        "apart": {
            "torch fused": {"p50_ns": apart_ns, "load": quiet},
            "ours cpu": {"p50_ns": 80.0, "load": quiet},
        },
        "load": quiet,
        "entries": [
            {
                "name": "ours cpu",
                "family": "ours",
                "status": preparation.TIMED,
                "p50_ns": 100.0,
                "times_torch_fused": 10.0,
            }
        ],
    }
    target = workloads.Target(workloads.TORCH_FUSED, 9.5)
    (found,) = harness.targets_of(row, (target,))
    assert found["value"] == value
    assert found["met"] == (value >= 9.5)


def test_turns_in_a_noisy_moment_count_only_if_all_were():
    def turn(ns: float, quiet: bool) -> dict:
        load = {"other_processes_cpus": 0.0 if quiet else 0.5, "stolen_cpus": 0.0, "quiet": quiet}
        return {"samples_ns": [ns], "load": load}

    found = separate_processes._summary([turn(1.0, True), turn(9.0, False), turn(3.0, True)])
    assert (found["samples_ns"], found["p50_ns"], found["turns"]) == ([1.0, 3.0], 2.0, 2)
    assert found["load"]["quiet"]
    noisy = separate_processes._summary([turn(1.0, False), turn(9.0, False)])
    assert noisy["p50_ns"] == 5.0
    assert noisy["load"] == {"other_processes_cpus": 0.5, "stolen_cpus": 0.0, "quiet": False}


def test_new_gradients_are_other_objects_at_other_addresses():
    workload = dataclasses.replace(TINY, new_gradients=True)
    entry = preparation.Entry.build(FIELD[0], workload, workload.tensors("cpu", 1, 1.0))
    action = entry.action("cpu", *preparation.gradient_sets(workload, "cpu", 1))
    seen = []
    for _ in range(2):
        action.before()
        seen.append([(id(p.grad), p.grad.data_ptr()) for p in entry.params])
    assert not {pair for first in seen[:1] for pair in first} & set(seen[1])


def test_the_host_row_leaves_out_the_kernel_and_puts_it_back():
    from stackelberg_fused import _cpu

    kernel = _cpu.step
    row = host.run(FIELD[0], FIELD[2], HASTE, counts=(2, 8))
    assert _cpu.step is kernel
    assert [c["parameters"] for c in row["cases"]] == [2, 2, 8, 8]
    assert all(c["kernel_p50_ns"] > 0 and c["p50_ns"] > 0 for c in row["cases"])
    assert row["cases"][2]["allowed_us"] == 22.0
    assert row["cases"][3]["allowed_us"] == 24.8


# --- processes


def test_the_process_alone_answers_and_says_what_went_wrong():
    with Alone() as alone:
        found = alone.ask({"pools": peers.TORCH_FUSED, "repeats": 1, "threads": 1})["samples_ns"]
        assert len(found) == 3
        assert all(ns > 0 for (ns,) in found.values())
        with pytest.raises(AloneFailed, match="StopIteration"):
            alone.ask(
                {
                    "row": "no such row",
                    "contestant": peers.TORCH_FUSED,
                    "device": "cpu",
                    "threads": 1,
                }
            )
        # the next request would start another process
        assert alone._process is None


def test_the_streaming_kernel_moves_every_element():
    pytest.importorskip("triton")
    program = (
        "import torch; from stackelberg_fused.benchmarks.stream_kernel import stream\n"
        "p, g, m, v = (torch.full((5000,), float(i)) for i in range(1, 5))\n"
        "stream(p, g, m, v, 4999)\n"
        "assert p[:4999].eq(3).all() and m[:4999].eq(5).all() and v[:4999].eq(6).all()\n"
        "assert (p[4999], g[4999], m[4999], v[4999]) == (1, 2, 3, 4)\n"
    )
    subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"TRITON_INTERPRET": "1"}, check=True
    )
