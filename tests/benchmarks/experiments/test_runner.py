"""Runs of an experiment: interrupted, in parallel, continued, checked and redrawn."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import EXPERIMENT_RESULTS

from stackelberg_fused.cli import main

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments import runner
from stackelberg_fused.benchmarks.experiments.command import EXPERIMENTS


def test_an_interrupted_experiment_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiment", "nonconvex", "--quick", "--out", str(tmp_path)]
    write, written = runner.write_atomically, []

    def interrupted(path: Path, fill: Any) -> None:
        write(path, fill)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "write_atomically", interrupted)
    assert main(command) == 130
    assert len(json.loads((tmp_path / "nonconvex.json").read_text())["cells"]) == 2
    assert main(command) == 0
    assert "2 cells done" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nonconvex", "quadratic"])
def test_jobs_do_not_change_results(name: str, tmp_path: Path) -> None:
    found = []
    for jobs in ("1", "2"):
        folder = tmp_path / jobs
        command = ["experiment", name, "--quick", "--out", str(folder), "--jobs", jobs]
        assert main(command) == 0
        found.append(json.loads((folder / f"{name}.json").read_text())["cells"])
    assert found[0] == found[1]
    with pytest.raises(SystemExit, match="measures time"):
        main(["experiment", "cost", "--quick", "--jobs", "2"])


def test_results_of_other_settings_are_not_continued(tmp_path: Path) -> None:
    command = ["experiment", "nonconvex", "--quick", "--out", str(tmp_path)]
    assert main(command) == 0
    file = tmp_path / "nonconvex.json"
    result = json.loads(file.read_text())
    result["settings"]["rates"] = 3
    file.write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="other settings"):
        main(command)


def test_machines_are_named_where_an_experiment_was_continued(tmp_path: Path) -> None:
    command = ["experiment", "nonconvex", "--quick", "--out", str(tmp_path)]
    assert main(command) == 0
    file = tmp_path / "nonconvex.json"
    result = json.loads(file.read_text())
    assert "continued_on" not in result
    here = result["hardware"]
    result["hardware"] = {**here, "cpu": "another"}
    result["cells"].popitem()
    file.write_text(json.dumps(result))
    for _ in range(2):
        assert main(command) == 0
        again = json.loads(file.read_text())
        assert again["hardware"]["cpu"] == "another"
        assert again["continued_on"] == [here]
        again["cells"].popitem()
        file.write_text(json.dumps(again))


def test_a_failed_check_is_printed_and_returned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiment", "quadratic", "--quick", "--out", str(tmp_path)]
    assert main(command) == 0
    file = tmp_path / "quadratic.json"
    result = json.loads(file.read_text())
    result["cells"]["Q: theta and w numbers, alternating, ratio 100"]["steps"] = 500
    file.write_text(json.dumps(result))
    assert main(command) == 1
    assert "CHECK FAILED: alternating, ratio 100: more than 10 steps" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["digits", "cartpole", "curvature", "cost"])
def test_a_result_is_redrawn_without_what_computed_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gymnasium", "sklearn"):
        monkeypatch.setitem(sys.modules, module, None)
    file = EXPERIMENT_RESULTS / f"{name}.json"
    assert main(["experiment", name, "--redraw", str(file), "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}.png").exists()


def _other(file: Path) -> None:
    file.write_text((EXPERIMENT_RESULTS / "quadratic.json").read_text())


def _unfinished(file: Path) -> None:
    result = json.loads((EXPERIMENT_RESULTS / "digits.json").read_text())
    result["cells"].popitem()
    file.write_text(json.dumps(result))


@pytest.mark.parametrize(
    "write, said",
    [
        (lambda file: None, "cannot read"),
        (Path.mkdir, "cannot read"),
        (lambda file: file.write_text("no"), "is not JSON"),
        (lambda file: file.write_text("[]"), "holds no result of an experiment, not of digits"),
        (_other, "holds a result of quadratic, not of digits"),
        (_unfinished, "is not finished"),
    ],
)
def test_a_file_that_cannot_be_redrawn_is_reported_in_one_line(
    write: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given.json"
    write(file)
    with pytest.raises(SystemExit) as refused:
        main(["experiment", "digits", "--redraw", str(file), "--out", str(tmp_path / "out")])
    line = str(refused.value)
    assert line.startswith("experiment: ")
    assert said in line
    assert str(file) in line
    assert "\n" not in line
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_committed_results_are_redrawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [EXPERIMENT_RESULTS / f"{name}.json" for name in EXPERIMENTS]
    files = [file for file in files if file.exists()]
    assert files
    for file in files:
        assert main(["experiment", file.stem, "--redraw", str(file), "--out", str(tmp_path)]) == 0
        result = json.loads(file.read_text())
        assert result["settings"]["quick"] is False
        assert "+changes" not in result["commit"]
        assert (tmp_path / f"{file.stem}.png").exists()
