"""The benchmark: shapes, who is let in, how ratios are made, and one small run from end to end."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import math
import subprocess
import sys
import time

import pytest
import torch
from bench_rows import (
    CONTESTANTS,
    FIELD,
    HASTE,
    TINY,
    WHOLE,
    WHOLE_FIELD,
    entry_of,
)
from paths import RESULTS
from stackelberg_fused.benchmarks import (
    backward,
    bench,
    contestant,
    entries,
    harness,
    machine,
    models,
    parity,
    peers,
    rows,
    workloads,
)

ROWS = {w.name: w for w in rows.workloads()}


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
        ("whole step: 600x1000 / 2 groups", 600, 600_000, 2),
        ("whole step: GPT-2-small shapes, 2 groups", 148, 124_439_808, 2),
        ("clip per role + step + clear: GPT-2-small shapes, 2 groups", 148, 124_439_808, 2),
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


def wrong(one: contestant.Contestant, error: float) -> contestant.Contestant:
    """The contestant, with an error in the last element of its first parameter."""

    def make(groups):
        optimizer, step = one.make(groups)
        target = groups[0]["params"][0]

        def wrong_step():
            step()
            target.data.view(-1)[-1] += error

        return optimizer, wrong_step

    return dataclasses.replace(one, make=make)


@pytest.mark.parametrize("error", [1e-5, math.nan])
def test_a_backend_that_fails_parity_is_not_timed(error):
    field = [wrong(FIELD[0], error), *FIELD[1:]]
    row = harness.run_row(
        dataclasses.replace(TINY, targets=(workloads.Target("copy", 0.0),)), field, HASTE, None
    )
    red = entry_of(row, "ours cpu")
    assert red["status"] == entries.RED
    assert "parameter 0 of shape (3, 5), element 14" in red["reason"]
    assert not {"p50_ns", "samples_ns", "times_torch_fused"} & set(red)
    assert entry_of(row, peers.TORCH_FUSED)["status"] == entries.TIMED


def test_a_peer_that_makes_another_update_is_not_timed():
    other = dataclasses.replace(
        CONTESTANTS[peers.TORCH_FUSED],
        name="peer",
        family="peer",
        make=lambda groups: contestant.with_step(
            torch.optim.SGD([p for g in groups for p in g["params"]], lr=1e-3)
        ),
    )
    row = harness.run_row(TINY, [*FIELD, other], HASTE, None)
    assert entry_of(row, "peer")["status"] == entries.RED
    assert "differs from AdamW's" in entry_of(row, "peer")["reason"]


def test_ulp():
    x = torch.tensor([1.0, -1.5, 2.0, 0.75, 0.0, 1e-45])
    assert parity.ulp(x).tolist() == [2**-23, 2**-23, 2**-22, 2**-24, 2**-149, 2**-149]


# --- the whole step


def broken(one: contestant.Contestant, what: str) -> contestant.Contestant:
    """torch's whole step without one of its parts."""

    def make(groups):
        steps, step = one.make(groups)
        if what == "clip":
            steps._roles = steps._roles[:1]
        elif what == "average":
            steps._average = lambda *_: None
        elif what == "clear":
            steps._optimizer.zero_grad = lambda set_to_none: None
        else:
            steps._scaler.unscale_ = lambda _: None
        return steps, step

    return dataclasses.replace(one, make=make)


def test_everyone_makes_the_same_whole_step_and_clears_in_place():
    row = harness.run_row(WHOLE, WHOLE_FIELD, HASTE, None)
    assert [e["name"] for e in row["entries"]] == [
        "ours cpu",
        "ours reference",
        "torch fused",
        "torch fused, flattened",
    ]
    assert {e["status"] for e in row["entries"]} == {entries.TIMED}
    assert entry_of(row, "ours cpu")["launches"] == 2
    assert [e["bytes_per_parameter"] for e in row["entries"]] == [52, 52, 64, 64]


@pytest.mark.parametrize("position", [2, 3])
@pytest.mark.parametrize(
    ("what", "reason"),
    [("clip", "exp_avg of"), ("average", "ema of"), ("clear", "not zero"), ("unscale", "broke")],
)
def test_a_whole_step_without_one_of_its_parts_is_not_timed(what, reason, position):
    field = [*WHOLE_FIELD[:2], broken(WHOLE_FIELD[position], what)]
    entry = harness.run_row(WHOLE, field, HASTE, None)["entries"][-1]
    if what == "unscale":
        # the scaler itself objects, or gradients are too large
        assert entry["status"] in (entries.RED, entries.SKIPPED)
    else:
        assert entry["status"] == entries.RED
        assert reason in entry["reason"]
    assert "p50_ns" not in entry


def test_gradients_of_a_whole_step_stay_and_are_filled_before_each():
    for one in WHOLE_FIELD:
        entry = entries.Entry.build(one, WHOLE, WHOLE.tensors("cpu", 1, 1.0))
        (grads,) = entries.gradient_sets(WHOLE, "cpu", 1)
        action = entry.action("cpu", grads)
        held = [p.grad for p in entry.params]
        for _ in range(2):
            action.before()
            assert all(torch.equal(h, g) for h, g in zip(held, grads, strict=True))
            action.call()
            assert all(p.grad is h and not h.any() for p, h in zip(entry.params, held, strict=True))


# --- backward and step together


def test_trainees_are_alike_and_gradients_end_as_they_say():
    training = models.quick_trainings()[0]
    field = backward.field("cpu")
    trainees = [backward.Trainee(one, training, "cpu") for one in field]
    for trainee in trainees:
        trainee.forward()
    assert len({trainee._loss.item() for trainee in trainees}) == 1
    for one, trainee in zip(field, trainees, strict=True):
        trainee.timed()
        assert all((p.grad is not None) == ("flat" in one.name) for p in trainee.params)


def test_a_wrong_step_after_a_backward_pass_is_not_timed():
    training = models.quick_trainings()[1]
    trainee, record = backward._enter(wrong(backward.field("cpu")[0], 1e-3), training, "cpu")
    assert trainee is None
    assert record["status"] == entries.RED


@pytest.mark.parametrize(
    ("training", "parameters"),
    list(zip(models.trainings(), [3_307_008, 211_530, 163_037_184], strict=True)),
    ids=lambda value: getattr(value, "name", ""),
)
def test_models_have_the_size_that_their_names_say(training, parameters):
    with torch.device("meta"):
        model = training.model()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert 0 < sum(training.heads()) < len(list(model.parameters()))


# --- who is let in


def test_peers_that_are_not_installed_are_skipped_with_a_reason():
    absent = dataclasses.replace(
        CONTESTANTS["torch-optimi"],
        available=lambda device: peers.installed("no_such_package_here", ("cpu",), device),
    )
    row = harness.run_row(TINY, [*FIELD, absent], HASTE, None)
    assert entry_of(row, "torch-optimi")["status"] == entries.SKIPPED
    assert entry_of(row, "torch-optimi")["reason"] == "not installed"


def test_every_contestant_says_whether_it_can_run():
    for one in CONTESTANTS.values():
        ok, reason = one.available("cpu")
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
    assert entry_of(row, "ours cpu")["status"] == entries.TIMED


def test_what_does_not_fit_in_memory_is_skipped(monkeypatch):
    monkeypatch.setattr(machine, "available_bytes", lambda device: 1000)
    row = harness.run_row(TINY, FIELD, HASTE, None)
    assert row["reason"].startswith("needs ")
    assert row["entries"] == []


# --- from end to end


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
    assert result["versions"]["torch"] == importlib.metadata.version("torch")
    kept, new, whole_step, fewer, gpt, mlp, around = result["rows"]
    for row in (kept, new, whole_step, fewer):
        name = "ours bf16 stochastic" if row is fewer else "ours cpu"
        mine = entry_of(row, name)
        assert mine["status"] == entries.TIMED
        assert mine["p20_ns"] <= mine["p50_ns"] <= mine["p80_ns"]
        assert len(mine["samples_ns"]) == row["rounds"]
        assert mine["launches"] == (2 if row is whole_step else 1)
        assert set(row["apart"]) == {"torch fused", name}
        assert all(found["p50_ns"] > 0 for found in row["apart"].values())
        assert row is fewer or entry_of(row, "ours cuda")["reason"]
        assert all(probe["gb_per_s"] > 0 for probe in row["probes"].values())
    assert entry_of(kept, "torch compiled")["reason"] == "--no-compile or --quick"
    assert "apart" in kept["targets"][0]
    assert [t["met"] for t in whole_step["targets"] if t["quantity"] == "launches"] == [True]
    assert [t["met"] for t in fewer["targets"]] == [True]
    for row in (gpt, mlp):
        assert [e["name"] for e in row["entries"]] == ["ours cpu", "ours cpu, flat", "torch fused"]
        assert all(e["status"] == entries.TIMED for e in row["entries"])
        assert all(len(e["samples_ns"]) == row["rounds"] for e in row["entries"])
        assert all(e["times_torch_fused"] > 0 for e in row["entries"])
        assert row["probes"]["backward alone"]["p50_ns"] > 0
    assert len(around["cases"]) == 4
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    redraw = ["--redraw", str(folder / "bench.json"), "--out", str(tmp_path)]
    assert bench.run(parser.parse_args(redraw)) == 0
    assert (tmp_path / "bench.png").exists()
    assert capsys.readouterr().out.strip() in done.stdout


@pytest.mark.parametrize("committed", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_results_can_be_printed_and_drawn(committed, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    redraw = ["--redraw", str(committed), "--out", str(tmp_path)]
    assert bench.run(parser.parse_args(redraw)) == 0
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in json.loads(committed.read_text())["rows"])
    assert (tmp_path / "bench.png").exists()
