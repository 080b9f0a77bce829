"""Samples, interleaved rounds and ratios."""

from __future__ import annotations

import pytest
from stackelberg_fused.benchmarks import timing


def test_rounds_are_interleaved_and_setup_is_not_timed(monkeypatch):
    clock = 0
    calls: list[str] = []

    def spend(ns: int) -> None:
        nonlocal clock
        clock += ns

    monkeypatch.setattr(timing, "now", lambda: clock)
    actions = {
        name: timing.Action(
            lambda name=name: calls.append(name) or spend(4_000_000),
            setup=lambda: spend(5_000_000),
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
    ("cost", "iterations", "warmup"),
    [(1_000, 50, 50), (400_000, 5, 12), (30_000_000, 1, 1), (200_000_000, 1, 0)],
)
def test_timed_and_untimed_calls_follow_the_cost(monkeypatch, cost, iterations, warmup):
    clock = 0

    def spend() -> None:
        nonlocal clock
        clock += cost

    monkeypatch.setattr(timing, "now", lambda: clock)
    action = timing.Action(spend)
    action.calibrate()
    assert (action.iterations, action.warmup_iterations) == (iterations, warmup)


def test_quantiles_and_ratios():
    assert timing.quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert timing.quantiles([1.0] * 9) == {"p20_ns": 1.0, "p50_ns": 1.0, "p80_ns": 1.0}
    assert timing.median_ratio([2.0, 9.0, 8.0], [1.0, 3.0, 2.0]) == 3.0
