"""The benchmark: shapes, who is let in, how ratios are made, and one small run from end to end."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
import time

import pytest
import torch
from stackelberg_fused.benchmarks import (
    bench,
    harness,
    host,
    machine,
    parity,
    peers,
    timing,
    workloads,
)
from stackelberg_fused.benchmarks.alone import Alone, AloneFailed

ROWS = {w.name: w for w in workloads.workloads()}
CONTESTANTS = {c.name: c for c in peers.contestants()}
FIELD = [CONTESTANTS[name] for name in ("ours cpu", "ours reference", peers.TORCH_FUSED)]
TINY = workloads.Workload("tiny", ((3, 5), (7,), ()), (0, 0, 1), 1)
HASTE = harness.Settings(rounds=3, seconds=0.05, compile=False, compile_seconds=30)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def entry_of(row: dict, name: str) -> dict:
    return next(e for e in row["entries"] if e["name"] == name)


# --- workloads


@pytest.mark.parametrize(
    ("name", "tensors", "numel", "groups"),
    [
        ("600x1000 / 2 groups", 600, 600_000, 2),
        ("465 groups x 1000", 465, 465_000, 465),
        ("2 tensors, 150k", 2, 150_000, 2),
        ("GPT-2-small shapes (148 tensors, 124M), 2 groups", 148, 124_439_808, 2),
        ("1G parameters fp32, 2 groups", 60, 1_006_632_960, 2),
        ("465 groups, 29M parameters", 465, 29_062_500, 465),
        ("ResNet-50 shapes (161 tensors, 25.6M), 2 groups, eager", 161, 25_557_032, 2),
        ("GPT-2-small shapes (148 tensors, 124M), 4 groups, eager", 148, 124_439_808, 4),
    ],
)
def test_rows_have_the_shapes_of_the_design(name, tensors, numel, groups):
    row = ROWS[name]
    assert (len(row.shapes), row.numel, row.groups) == (tensors, numel, groups)
    assert len(row.group_of) == tensors
    assert set(row.group_of) == set(range(groups))
    assert row.targets


def test_groups_have_rates_of_their_own_and_the_head_ten_times_the_bodys():
    params = [torch.nn.Parameter(t) for t in TINY.tensors("cpu", 0, 1.0)]
    body, head = TINY.param_groups(params)
    assert [len(body["params"]), len(head["params"])] == [2, 1]
    assert (body["role"], head["role"]) == ("body", "head")
    assert head["lr"] == pytest.approx(10.1 * body["lr"])


def test_the_same_seed_gives_the_same_tensors():
    for a, b in zip(TINY.tensors("cpu", 3, 0.5), TINY.tensors("cpu", 3, 0.5), strict=True):
        assert torch.equal(a, b)


# --- parity comes first


def wrong(contestant: peers.Contestant, error: float) -> peers.Contestant:
    """The contestant, with an error in the last element of its first parameter."""

    def make(groups):
        optimizer, step = contestant.make(groups)
        target = groups[0]["params"][0]

        def wrong_step():
            step()
            target.data.view(-1)[-1] += error

        return optimizer, wrong_step

    return dataclasses.replace(contestant, make=make)


@pytest.mark.parametrize("error", [1e-5, math.nan])
def test_a_backend_that_fails_parity_is_not_timed(error):
    field = [wrong(FIELD[0], error), *FIELD[1:]]
    row = harness.run_row(
        dataclasses.replace(TINY, targets=(workloads.Target("copy", 0.0),)), field, HASTE, None
    )
    red = entry_of(row, "ours cpu")
    assert red["status"] == harness.RED
    assert "parameter 0 of shape (3, 5), element 14" in red["reason"]
    assert not {"p50_ns", "samples_ns", "times_torch_fused"} & set(red)
    assert entry_of(row, peers.TORCH_FUSED)["status"] == harness.TIMED


def test_a_peer_that_makes_another_update_is_not_timed():
    other = dataclasses.replace(
        CONTESTANTS[peers.TORCH_FUSED],
        name="peer",
        family="peer",
        make=lambda groups: peers._with_step(
            torch.optim.SGD([p for g in groups for p in g["params"]], lr=1e-3)
        ),
    )
    row = harness.run_row(TINY, [*FIELD, other], HASTE, None)
    assert entry_of(row, "peer")["status"] == harness.RED
    assert "differs from AdamW's" in entry_of(row, "peer")["reason"]


def test_ulp():
    x = torch.tensor([1.0, -1.5, 2.0, 0.75, 0.0, 1e-45])
    assert parity.ulp(x).tolist() == [2**-23, 2**-23, 2**-22, 2**-24, 2**-149, 2**-149]


# --- who is let in


def test_peers_that_are_not_installed_are_skipped_with_a_reason():
    absent = dataclasses.replace(
        CONTESTANTS["torch-optimi"],
        available=lambda device: peers._installed("no_such_package_here", ("cpu",), device),
    )
    row = harness.run_row(TINY, [*FIELD, absent], HASTE, None)
    assert entry_of(row, "torch-optimi")["status"] == harness.SKIPPED
    assert entry_of(row, "torch-optimi")["reason"] == "not installed"


def test_every_contestant_says_whether_it_can_run():
    for contestant in CONTESTANTS.values():
        ok, reason = contestant.available("cpu")
        assert ok or reason


def test_a_compilation_that_takes_too_long_is_cut_off():
    def make(groups):
        optimizer, step = CONTESTANTS["torch for-loop"].make(groups)
        return optimizer, lambda: (time.sleep(30), step())

    slow = dataclasses.replace(
        CONTESTANTS["torch compiled"], make=make, available=lambda _device: (True, "")
    )
    settings = dataclasses.replace(HASTE, compile=True, compile_seconds=0.5)
    row = harness.run_row(TINY, [*FIELD, slow], settings, None)
    assert entry_of(row, "torch compiled")["reason"] == "compilation took longer than 0.5 s"
    assert entry_of(row, "ours cpu")["status"] == harness.TIMED


def test_what_does_not_fit_in_memory_is_skipped(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda device: 1000)
    row = harness.run_row(TINY, FIELD, HASTE, None)
    assert row["reason"].startswith("needs ")
    assert row["entries"] == []


# --- timing


def test_rounds_are_interleaved_and_preparation_is_not_timed():
    calls: list[str] = []
    actions = {
        name: timing.Action(
            lambda name=name: calls.append(name) or time.sleep(4e-3),
            before=lambda: time.sleep(5e-3),
        )
        for name in "abc"
    }
    samples = timing.interleave(actions, rounds=4, seconds=10)
    assert {len(s) for s in samples.values()} == {4}
    # an untimed call in front of each timed one
    rounds = [calls[-24:][i : i + 6] for i in range(0, 24, 6)]
    assert all(r[::2] == r[1::2] and sorted(r[::2]) == ["a", "b", "c"] for r in rounds)
    # the sleep before each call would make it nine
    assert all(timing.quantile(s, 0.0) < 8e6 for s in samples.values())


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
                "status": harness.TIMED,
                "p50_ns": 100.0,
                "times_torch_fused": 10.0,
            }
        ],
    }
    target = workloads.Target(workloads.TORCH_FUSED, 9.5)
    (found,) = harness._targets(row, dataclasses.replace(TINY, targets=(target,)))
    assert found["value"] == value
    assert found["met"] == (value >= 9.5)


def test_new_gradients_are_other_objects_at_other_addresses():
    workload = dataclasses.replace(TINY, new_gradients=True)
    entry = harness.Entry.build(FIELD[0], workload, workload.tensors("cpu", 1, 1.0))
    action = entry.action("cpu", *harness.gradient_sets(workload, "cpu", 1))
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


def test_a_quick_run_writes_json_and_png(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = [sys.executable, "-m", "stackelberg_fused", "bench", "--quick", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 120
    folder = tmp_path / "runs" / "bench"
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((folder / "bench.json").read_text())
    assert result["command"].startswith("python -m stackelberg_fused bench --quick")
    assert result["threads"] == 1
    assert result["hardware"]["cpu"]
    assert result["versions"]["torch"] == torch.__version__
    kept, new, around = result["rows"]
    for row in (kept, new):
        mine = entry_of(row, "ours cpu")
        assert mine["status"] == harness.TIMED
        assert mine["p20_ns"] <= mine["p50_ns"] <= mine["p80_ns"]
        assert len(mine["samples_ns"]) == row["rounds"]
        assert mine["launches"] == 1
        assert set(row["apart"]) == {"torch fused", "ours cpu"}
        assert all(found["p50_ns"] > 0 for found in row["apart"].values())
        assert entry_of(row, "ours cuda")["reason"]
        assert entry_of(row, "torch compiled")["reason"] == "--no-compile"
        assert all(probe["gb_per_s"] > 0 for probe in row["probes"].values())
    assert "apart" in kept["targets"][0]
    assert len(around["cases"]) == 4
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    redraw = ["--redraw", str(folder / "bench.json"), "--out", str(tmp_path)]
    assert bench.run(parser.parse_args(redraw)) == 0
    assert (tmp_path / "bench.png").exists()
    assert capsys.readouterr().out.strip() in done.stdout
