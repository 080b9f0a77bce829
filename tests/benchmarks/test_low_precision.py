"""Low-precision rows: what their contestants start from, and their memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bench_rows import FAST
from stackelberg_fused.benchmarks.harness import run_row
from stackelberg_fused.benchmarks.low_precision import STATES, low_precision_contestants
from stackelberg_fused.benchmarks.preparation import PARITY_FAILED, TIMED, gradient_sets
from stackelberg_fused.benchmarks.rows import quick_workloads

QUICK = next(w for w in quick_workloads() if w.states is not None)


def test_everyone_begins_with_numbers_that_bfloat16_holds():
    for t in (*QUICK.start("cpu", 1), *gradient_sets(QUICK, "cpu", 1)[0]):
        assert t.dtype is torch.float32
        assert torch.equal(t, t.bfloat16().float())
    (grads,) = gradient_sets(QUICK, "cpu", 1, torch.bfloat16)
    assert {g.dtype for g in grads} == {torch.bfloat16}


@pytest.mark.parametrize("states", STATES)
def test_everyone_that_can_run_is_timed_with_its_memory(states):
    workload = dataclasses.replace(QUICK, states=states, targets=())
    row = run_row(workload, low_precision_contestants(states), FAST, None)
    assert row["states"] == states
    for entry in row["entries"]:
        if entry["family"] != "peer":
            assert entry["status"] == TIMED, entry["reason"]
            assert entry["times_torch_fused"] > 0
        assert entry["status"] != PARITY_FAILED, entry["reason"]
        assert entry["status"] == TIMED or entry["reason"]
    stored = {
        e["name"]: e["stored_bytes_per_parameter"] for e in row["entries"] if e["status"] == TIMED
    }
    assert stored["torch fused"] == pytest.approx(12, abs=0.01)
    assert stored["torch fused bf16"] == pytest.approx(6, abs=0.01)
    if states == "8bit":
        assert stored["ours bf16 split8"] <= 5.1
        assert stored["ours bf16 stochastic"] <= 4.1
    launches = {e["launches"] for e in row["entries"] if e["name"].startswith("ours bf16")}
    assert launches == {1}
