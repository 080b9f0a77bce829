"""Every experiment in its quick form, from the command line to the plot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stackelberg_fused.cli import main

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments.command import EXPERIMENTS

# what the JSON of a quick run has to show
CELLS = {
    "quadratic": 4,
    "nonconvex": 4,
    "rates": 2 * 2 * 2,
    "digits": 4 * 3,  # for tuning, before the seeds
    "language": 4 * 3,
    "neurons": 4 * 3 * 2,
    "curvature": 2,
    "cartpole": 2 + 2,
    "actor": 4 + 10 + 6,
    "cost": 1,
    "gaussians": 4 * 3 + 5 * 2 + 1,
    "kinds": 1 + 4 + 3 + 6,
    "precision": 2 * 2 * 2,
    "finetune": 2 * 2 * 5,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name in ("actor", "cartpole"):
        pytest.importorskip("gymnasium")
    command = ["experiment", name, "--quick", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "CHECK FAILED" not in said
    file = tmp_path / f"{name}.json"
    result = json.loads(file.read_text())
    assert len(result["cells"]) >= CELLS[name]
    assert result["settings"]["quick"] is True
    assert {"commit", "command", "hardware", "versions"} <= result.keys()
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    # nothing is computed twice
    assert main(command) == 0
    assert f"continuing with {len(result['cells'])} finished cells" in capsys.readouterr().out
    assert json.loads(file.read_text())["cells"] == result["cells"]
