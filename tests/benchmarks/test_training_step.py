"""The training-step rows: each part of the step is checked, and gradients are cleared."""

from __future__ import annotations

import dataclasses

import pytest
from bench_rows import FAST, TRAINING_STEP, TRAINING_STEP_CONTESTANTS
from stackelberg_fused.benchmarks.contestant import Contestant
from stackelberg_fused.benchmarks.harness import run_row
from stackelberg_fused.benchmarks.preparation import PARITY_FAILED, SKIPPED, TIMED


def without(part: str, contestant: Contestant) -> Contestant:
    """Take one part away from torch's training step."""

    def make(groups):
        tools, step = contestant.make(groups)
        if part == "clip":
            tools._clipped = tools._clipped[:1]
        elif part == "average":
            tools._average = lambda *_: None
        elif part == "clear":
            tools._optimizer.zero_grad = lambda set_to_none: None
        else:
            tools._scaler.unscale_ = lambda _: None
        return tools, step

    return dataclasses.replace(contestant, make=make)


def test_everyone_makes_the_same_training_step_and_clears():
    entries = run_row(TRAINING_STEP, TRAINING_STEP_CONTESTANTS, FAST, None)["entries"]
    assert [e["name"] for e in entries] == [
        "ours cpu",
        "ours reference",
        "torch fused",
        "torch fused, flattened",
    ]
    assert {e["status"] for e in entries} == {TIMED}
    assert entries[0]["launches"] == 2
    assert [e["bytes_per_parameter"] for e in entries] == [40, 40, 60, 64]


@pytest.mark.parametrize("position", [2, 3])
@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("clip", "exp_avg of"),
        ("average", "ema of"),
        ("clear", "not cleared"),
        ("unscale", ""),
    ],
)
def test_a_training_step_without_one_of_its_parts_is_not_timed(part, reason, position):
    contestants = [
        *TRAINING_STEP_CONTESTANTS[:2],
        without(part, TRAINING_STEP_CONTESTANTS[position]),
    ]
    entry = run_row(TRAINING_STEP, contestants, FAST, None)["entries"][-1]
    if part == "unscale":
        # the scaler itself objects, or gradients are too large
        assert entry["status"] in (PARITY_FAILED, SKIPPED)
    else:
        assert entry["status"] == PARITY_FAILED
        assert reason in entry["reason"]
    assert "p50_ns" not in entry
