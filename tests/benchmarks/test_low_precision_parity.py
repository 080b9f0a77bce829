"""Parity in few bits: a first step that the bits show to be wrong is not timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bench_rows import FAST, entry_of
from stackelberg_fused.benchmarks.contestant import Contestant, find_contestant
from stackelberg_fused.benchmarks.harness import run_row
from stackelberg_fused.benchmarks.low_precision import low_precision_contestants
from stackelberg_fused.benchmarks.preparation import PARITY_FAILED, SEED
from stackelberg_fused.benchmarks.rows import quick_workloads

QUICK = next(w for w in quick_workloads() if w.states is not None)
CONTESTANTS = low_precision_contestants("8bit")


def with_defect(name: str, defect: str) -> Contestant:
    """Take one of ours with 8-bit states, or torch's with bfloat16, and spoil something after its steps."""
    contestant = find_contestant(CONTESTANTS, name)

    def make(groups):
        optimizer, step = contestant.make(groups)
        p = groups[0]["params"][0]

        def wrong_step():
            step()
            state = optimizer.state[p]
            with torch.no_grad():
                if defect == "steps":
                    # by two steps of bfloat16, all in one direction
                    p.view(torch.int16).add_(2)
                elif defect == "nan":
                    p.view(-1)[3] = torch.nan
                elif defect == "still":
                    p.copy_(QUICK.start("cpu", SEED)[0])
                elif defect == "code":
                    state["exp_avg_sq_code"].add_(8)
                else:
                    state[defect].zero_()

        return optimizer, wrong_step

    return dataclasses.replace(contestant, make=make)


@pytest.mark.parametrize(
    ("name", "defect", "reason"),
    [
        ("ours bf16 stochastic", "steps", "update"),
        ("ours bf16 stochastic", "still", "update"),
        ("torch fused bf16", "steps", "update"),
        ("torch fused bf16", "nan", "update"),
        ("ours bf16 split8", "remainder", "update"),
        ("ours bf16 kahan", "kahan_comp", "update"),
        ("ours bf16 nearest", "exp_avg_scale", "exp_avg of"),
        ("ours fp32", "code", "exp_avg_sq of"),
    ],
)
def test_a_step_that_the_bits_show_to_be_wrong_is_not_timed(name, defect, reason):
    reference = find_contestant(CONTESTANTS, "ours reference")
    entry = entry_of(run_row(QUICK, [with_defect(name, defect), reference], FAST, None), name)
    assert entry["status"] == PARITY_FAILED
    assert entry["reason"].startswith(("the " if reason == "update" else "") + reason)
    assert "parameter 0" in entry["reason"]
    assert "p50_ns" not in entry


@pytest.mark.parametrize("shape", [(700, 1000), (5, 33)], ids=str)
def test_blocks_are_found_where_rows_end_within_them(shape):
    """Of the first, parts are compared; no block crosses a row in either."""
    workload = dataclasses.replace(QUICK, shapes=(shape,) * 2, group_of=(0, 1), first_head=1)
    reference = find_contestant(CONTESTANTS, "ours reference")
    right = find_contestant(CONTESTANTS, "ours bf16 split8")
    assert entry_of(run_row(workload, [right, reference], FAST, None), right.name)["p50_ns"] > 0
    wrong = with_defect(right.name, "code")
    entry = entry_of(run_row(workload, [wrong, reference], FAST, None), wrong.name)
    assert entry["status"] == PARITY_FAILED
    assert entry["reason"].startswith("exp_avg_sq of")
