"""The comparison of two checkouts: here of this one with itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import ROOT
from stackelberg_fused.benchmarks import compare_commits


def test_rows_are_of_the_step_and_of_the_host_each_also_with_new_gradients():
    workloads = compare_commits.compared_workloads()
    assert len(workloads) == 2 * (4 + 3)
    for name, workload in workloads.items():
        assert workload.name == name
        assert workload.new_gradients == name.endswith(", new gradients")
    assert "GPT-2-small shapes (148 tensors, 124M), 2 groups, new gradients" in workloads


@pytest.mark.slow
def test_a_checkout_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "comparison.json"
    command = [str(ROOT), str(ROOT), "--only", "2 parameters of 16", "--rounds", "3"]
    assert compare_commits.main([*command, "--seconds", "0.1", "--out", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 2
    for row, samples in rows.items():
        first = lines.index(f"{row}, 3 rounds")
        assert [line.split()[0] for line in lines[first + 1 : first + 4]] == list(samples)
        assert all(len(times) == 3 and min(times) > 0 for times in samples.values())
    assert sum("  ratio " in line for line in lines) == 4


@pytest.mark.slow
def test_a_folder_that_is_no_checkout_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = [str(ROOT), str(tmp_path), "--only", "2 parameters of 16"]
    assert compare_commits.main(command) == 2
    assert f"{tmp_path}: imported" in capsys.readouterr().err
