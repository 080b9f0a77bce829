"""The bench command from end to end: a small run, and every committed result."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys

import pytest
from bench_rows import entry_of
from paths import RESULTS
from stackelberg_fused.benchmarks import bench
from stackelberg_fused.benchmarks.preparation import TIMED


@pytest.mark.slow
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
    plain, new, training_step, low_precision, gpt, mlp, memory, host = result["rows"]
    for row in (plain, new, training_step, low_precision):
        name = "ours bf16 stochastic" if row is low_precision else "ours cpu"
        mine = entry_of(row, name)
        assert mine["status"] == TIMED
        assert mine["p20_ns"] <= mine["p50_ns"] <= mine["p80_ns"]
        assert len(mine["samples_ns"]) == row["rounds"]
        assert mine["launches"] == (2 if row is training_step else 1)
        assert set(row["apart"]) == {"torch fused", name}
        assert all(times["p50_ns"] > 0 for times in row["apart"].values())
        assert row is low_precision or entry_of(row, "ours cuda")["reason"]
        assert all(probe["gb_per_s"] > 0 for probe in row["probes"].values())
    assert entry_of(plain, "torch compiled")["reason"] == "--no-compile or --quick"
    assert "apart" in plain["targets"][0]
    assert [t["met"] for t in training_step["targets"] if t["quantity"] == "launches"] == [True]
    assert [t["met"] for t in low_precision["targets"]] == [True]
    assert {e["status"] for e in memory["entries"]} == {"measured"}
    for row in (gpt, mlp):
        assert [e["name"] for e in row["entries"]] == [
            "ours cpu",
            "ours cpu, flat",
            "ours cpu, release",
            "torch fused",
            "torch fused, each alone",
        ]
        assert all(e["status"] == TIMED for e in row["entries"])
        assert all(len(e["samples_ns"]) == row["rounds"] for e in row["entries"])
        assert all(e["times_torch_fused"] > 0 for e in row["entries"])
        assert row["probes"]["backward alone"]["p50_ns"] > 0
    assert len(host["cases"]) == 4
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
