"""Parity comes first: a contestant whose step differs from the reference's is not timed."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from bench_rows import CONTESTANTS, FAST, TINY, TRIO, entry_of, with_wrong_step
from stackelberg_fused.benchmarks import parity
from stackelberg_fused.benchmarks.contestant import with_step
from stackelberg_fused.benchmarks.harness import run_row
from stackelberg_fused.benchmarks.preparation import PARITY_FAILED, TIMED
from stackelberg_fused.benchmarks.workloads import TORCH_FUSED, Target


@pytest.mark.parametrize("error", [1e-5, math.nan])
def test_a_backend_that_fails_parity_is_not_timed(error):
    contestants = [with_wrong_step(TRIO[0], error), *TRIO[1:]]
    workload = dataclasses.replace(TINY, targets=(Target("copy", 0.0),))
    row = run_row(workload, contestants, FAST, None)
    failed = entry_of(row, "ours cpu")
    assert failed["status"] == PARITY_FAILED
    assert "parameter 0 of shape (3, 5), element 14" in failed["reason"]
    assert not {"p50_ns", "samples_ns", "times_torch_fused"} & set(failed)
    assert entry_of(row, TORCH_FUSED)["status"] == TIMED


def test_a_peer_that_makes_another_update_is_not_timed():
    peer = dataclasses.replace(
        CONTESTANTS[TORCH_FUSED],
        name="peer",
        family="peer",
        make=lambda groups: with_step(
            torch.optim.SGD([p for g in groups for p in g["params"]], lr=1e-3)
        ),
    )
    row = run_row(TINY, [*TRIO, peer], FAST, None)
    assert entry_of(row, "peer")["status"] == PARITY_FAILED
    assert "differs from AdamW's" in entry_of(row, "peer")["reason"]


def test_ulp():
    x = torch.tensor([1.0, -1.5, 2.0, 0.75, 0.0, 1e-45])
    assert parity.ulp(x).tolist() == [2**-23, 2**-23, 2**-22, 2**-24, 2**-149, 2**-149]


def test_a_relative_error_passes_up_to_its_bound_and_nan_never():
    error = parity.RelativeError()
    error.add(torch.tensor([3.0, 0.0]), torch.tensor([30.0, 0.0]))
    error.add(torch.tensor([4.0]), torch.tensor([40.0]))
    assert error.message(0.1, "x") == ""
    assert error.message(0.09, "x") == "x differs from AdamW's by 10.00%"
    error.add(torch.tensor([math.nan]), torch.tensor([1.0]))
    assert error.message(0.1, "x") == "x differs from AdamW's by nan%"
    assert parity.RelativeError().message(0.0, "x") == ""
