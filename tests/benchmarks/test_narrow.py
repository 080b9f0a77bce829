"""The benchmark's rows of fewer bits: bytes, who stands in them, and what is not timed."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from bench_rows import HASTE, entry_of
from stackelberg_fused.benchmarks import (
    contestant,
    harness,
    low_precision,
    preparation,
    rows,
    stored_bytes,
    workloads,
)

import stackelberg_fused as sf

ROWS = {w.states: w for w in rows.workloads() if w.states is not None}
QUICK = next(w for w in rows.quick_workloads() if w.states is not None)
# Adam: reads p, g, m, v and what is beside p, and writes all but g
MOVED = {
    ("float32", "bfloat16", "stochastic"): 22,
    ("float32", "bfloat16", None): 22,
    ("float32", "bfloat16", "split8"): 24,
    ("float32", "bfloat16", "split16"): 26,
    ("float32", "bfloat16", "kahan"): 26,
    ("bfloat16", "bfloat16", "stochastic"): 14,
    ("bfloat16", "bfloat16", "kahan"): 18,
    ("8bit", "bfloat16", "stochastic"): 10.125,
    ("8bit", "bfloat16", "split8"): 12.125,
    ("float32", "float32", None): 28,
    ("bfloat16", "float32", None): 20,
    ("8bit", "float32", None): 16.125,
}


def row_of(states: str) -> workloads.Workload:
    """The quick row with states of that kind."""
    return dataclasses.replace(QUICK, states=states, targets=())


# --- rows


@pytest.mark.parametrize("states", low_precision.STATES)
def test_rows_of_fewer_bits_have_the_shapes_of_the_design(states):
    row = ROWS[states]
    assert (len(row.shapes), row.numel, row.groups) == (148, 124_439_808, 2)
    assert "in fewer bits" in row.name
    names = [c.name for c in low_precision.narrow_contestants(states)]
    assert len(set(names)) == len(names)
    assert {"ours bf16 split8", "ours fp32", "torch fused", "torch fused bf16"} < set(names)


def test_the_target_of_8_bits_is_of_two_schemes_and_of_the_cpu():
    held = [t for t in ROWS["8bit"].targets if t.quantity == workloads.TORCH_FUSED]
    assert [(t.bound, t.contestant, t.device) for t in held] == [
        (1.5, "ours bf16 stochastic", "cpu"),
        (1.5, "ours bf16 split8", "cpu"),
    ]


def test_everyone_begins_with_numbers_that_bfloat16_holds():
    for t in (*QUICK.start("cpu", 1), *preparation.gradient_sets(QUICK, "cpu", 1)[0]):
        assert t.dtype is torch.float32
        assert torch.equal(t, t.bfloat16().float())
    (grads,) = preparation.gradient_sets(QUICK, "cpu", 1, torch.bfloat16)
    assert {g.dtype for g in grads} == {torch.bfloat16}


# --- bytes


@pytest.mark.parametrize(("states", "param", "master"), MOVED)
def test_bytes_are_those_that_the_optimizer_keeps(states, param, master):
    dtype = getattr(torch, param)
    described = low_precision.kept_by_ours(dtype, master, states)
    assert described.moved == MOVED[states, param, master]
    p = torch.nn.Parameter(torch.zeros(64, 96, dtype=dtype))
    p.grad = torch.ones_like(p)
    opt = sf.StackelbergAdamW([p], master=master, state_dtype=states)
    opt.step()
    # beside its step count
    found = stored_bytes.stored_bytes([p], opt.state) - opt.state[p]["step"].nbytes
    assert found == described.stored * p.numel()


def test_storages_are_counted_once_and_looked_for_inside():
    two_tensor = pytest.importorskip("torch.testing._internal.two_tensor").TwoTensor

    class Own:
        def __init__(self) -> None:
            self.codes, self.itself = torch.zeros(5, dtype=torch.uint8), self

    flat = torch.zeros(10)
    p, q = torch.nn.Parameter(flat[:4]), torch.nn.Parameter(flat[4:])
    table = torch.zeros(3)
    state = {
        p: {"step": 3, "m": two_tensor(torch.zeros(2), torch.zeros(2)), "table": table},
        q: {"m": Own(), "table": table, "parts": [torch.zeros(7), None]},
    }
    assert stored_bytes.stored_bytes([p, q], state) == 4 * (10 + 2 + 2 + 3 + 7) + 5


# --- who is timed


@pytest.mark.parametrize("states", low_precision.STATES)
def test_everyone_that_can_run_is_timed_with_its_memory(states):
    row = harness.run_row(row_of(states), low_precision.narrow_contestants(states), HASTE, None)
    assert row["states"] == states
    for entry in row["entries"]:
        if entry["family"] != "peer":
            assert entry["status"] == preparation.TIMED, entry["reason"]
            assert entry["times_torch_fused"] > 0
        assert entry["status"] != preparation.RED, entry["reason"]
        assert entry["status"] == preparation.TIMED or entry["reason"]
    stored = {
        e["name"]: e["stored_bytes_per_parameter"]
        for e in row["entries"]
        if e["status"] == preparation.TIMED
    }
    assert stored["torch fused"] == pytest.approx(12, abs=0.01)
    assert stored["torch fused bf16"] == pytest.approx(6, abs=0.01)
    if states == "8bit":
        assert stored["ours bf16 split8"] <= 5.1
        assert stored["ours bf16 stochastic"] <= 4.1
    launches = {e["launches"] for e in row["entries"] if e["name"].startswith("ours bf16")}
    assert launches == {1}


def spoilt(name: str, what: str) -> contestant.Contestant:
    """One of ours of 8 bits, or torch's of bfloat16, whose first step leaves something wrong."""
    one = next(c for c in low_precision.narrow_contestants("8bit") if c.name == name)

    def make(groups):
        optimizer, step = one.make(groups)
        p = groups[0]["params"][0]

        def wrong_step():
            step()
            state = optimizer.state[p]
            with torch.no_grad():
                if what == "steps":
                    # by two steps of bfloat16, all in one direction
                    p.view(torch.int16).add_(2)
                elif what == "nan":
                    p.view(-1)[3] = torch.nan
                elif what == "still":
                    p.copy_(QUICK.start("cpu", preparation.SEED)[0])
                elif what == "code":
                    state["exp_avg_sq_code"].add_(8)
                else:
                    state[what].zero_()

        return optimizer, wrong_step

    return dataclasses.replace(one, make=make)


@pytest.mark.parametrize(
    ("name", "what", "reason"),
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
def test_a_step_that_the_bits_show_to_be_wrong_is_not_timed(name, what, reason):
    reference = next(
        c for c in low_precision.narrow_contestants("8bit") if c.name == "ours reference"
    )
    row = harness.run_row(QUICK, [spoilt(name, what), reference], HASTE, None)
    entry = entry_of(row, name)
    assert entry["status"] == preparation.RED
    assert entry["reason"].startswith(("the " if reason == "update" else "") + reason)
    assert "parameter 0" in entry["reason"]
    assert "p50_ns" not in entry


# --- targets


def test_a_target_may_be_of_one_contestant_and_one_device():
    def timed(name: str, ratio: float, stored: float) -> dict:
        found = {"name": name, "family": "ours", "status": preparation.TIMED}
        return found | {"times_torch_fused": ratio, "stored_bytes_per_parameter": stored}

    busy = {"quiet": False, "other_processes_cpus": 1.0, "stolen_cpus": 0.0}
    row = {
        "device": "cpu",
        "load": busy,
        "apart": {},
        "entries": [timed("first", 2.0, 4.0), timed("second", 1.0, 5.0)],
    }
    targets = (
        workloads.Target("stored", 4.1),
        workloads.Target("stored", 4.1, "second"),
        workloads.Target(workloads.TORCH_FUSED, 1.5, "second"),
        workloads.Target(workloads.TORCH_FUSED, 1.5, "second", "cuda"),
        workloads.Target("stored", 4.1, "third"),
    )
    found = harness.targets_of(row, targets)
    assert [(t["backend"], t["value"], t["met"]) for t in found] == [
        ("first", 4.0, True),
        ("second", 5.0, False),
        ("second", 1.0, None),
        (None, None, None),
    ]
