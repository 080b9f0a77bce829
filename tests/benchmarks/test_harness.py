"""Targets: which contestant they are about, and which of two ratios counts."""

from __future__ import annotations

import pytest
from stackelberg_fused.benchmarks.harness import judge_targets
from stackelberg_fused.benchmarks.preparation import TIMED
from stackelberg_fused.benchmarks.workloads import TORCH_FUSED, Target


@pytest.mark.parametrize(("torch_ns", "value"), [(720.0, 9.0), (1100.0, 10.0)])
def test_the_lower_of_both_ratios_counts(torch_ns, value):
    quiet = {"quiet": True}
    row = {
        "device": "cpu",
        "apart": {
            "torch fused": {"p50_ns": torch_ns, "load": quiet},
            "ours cpu": {"p50_ns": 80.0, "load": quiet},
        },
        "load": quiet,
        "entries": [
            {
                "name": "ours cpu",
                "family": "ours",
                "status": TIMED,
                "p50_ns": 100.0,
                "times_torch_fused": 10.0,
            }
        ],
    }
    (record,) = judge_targets(row, (Target(TORCH_FUSED, 9.5),))
    assert record["value"] == value
    assert record["met"] == (value >= 9.5)


def test_a_target_may_be_of_one_contestant_and_one_device():
    def timed(name: str, ratio: float, stored: float) -> dict:
        entry = {"name": name, "family": "ours", "status": TIMED}
        return entry | {"times_torch_fused": ratio, "stored_bytes_per_parameter": stored}

    busy = {"quiet": False, "other_processes_cpus": 1.0, "stolen_cpus": 0.0}
    row = {
        "device": "cpu",
        "load": busy,
        "apart": {},
        "entries": [timed("first", 2.0, 4.0), timed("second", 1.0, 5.0)],
    }
    targets = (
        Target("stored", 4.1),
        Target("stored", 4.1, "second"),
        Target(TORCH_FUSED, 1.5, "second"),
        Target(TORCH_FUSED, 1.5, "second", "cuda"),
        Target("stored", 4.1, "third"),
    )
    records = judge_targets(row, targets)
    assert [(r["backend"], r["value"], r["met"]) for r in records] == [
        ("first", 4.0, True),
        ("second", 5.0, False),
        ("second", 1.0, None),
        (None, None, None),
    ]
