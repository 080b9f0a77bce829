"""The experiment with Gaussians: its checks, and the figures that the documentation takes from it."""

from __future__ import annotations

import copy
import json
import re
import statistics

import pytest
from paths import EXPERIMENT_RESULTS, ROOT

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments.gaussians import Arm, Gaussians


def test_checks_can_fail() -> None:
    cells = json.loads((EXPERIMENT_RESULTS / "gaussians.json").read_text())["cells"]
    experiment = Gaussians(quick=False)
    assert experiment.check(cells) == []
    by_kind = Arm("by kind", "constant")
    exponent = experiment.best(cells, by_kind)
    for change in ({"launches": 399}, {"psnr": {"40": 20.0, "400": 20.5}}):
        other = copy.deepcopy(cells)
        for seed in experiment.seeds:
            other[by_kind.key(exponent, seed)].update(change)
        assert experiment.check(other)
    other = copy.deepcopy(cells)
    for seed in experiment.tuning_seeds:
        other[by_kind.key(experiment.points[0], seed)]["psnr"]["400"] = 60.0
        for final in experiment.seeds:
            other[by_kind.key(experiment.points[0], final)] = other[by_kind.key(exponent, final)]
            adams = Arm("six Adams", "constant")
            other[adams.key(experiment.points[0], final)] = other[adams.key(exponent, final)]
    assert any("end of the grid" in line for line in experiment.check(other))


def test_documented_figures_are_those_of_the_committed_run() -> None:
    cells = json.loads((EXPERIMENT_RESULTS / "gaussians.json").read_text())["cells"]
    experiment = Gaussians(quick=False)
    text = (ROOT / "docs" / "results.md").read_text()
    for column in experiment.tables(cells)[0].columns[3:4]:
        for said in column.cells:
            assert str(said) in text, said
    for line in experiment.verdict(cells):
        gain = re.search(r"-?\d+\.\d\d \+- \d+\.\d\d", line)
        assert gain is not None, line
        assert gain[0] in text, line
    best = [
        statistics.mean(experiment.final(cells, experiment.pictured(cells, o)))
        for o in ("one rate", "by kind")
    ]
    one, by_kind = sorted(best)
    front = (ROOT / "README.md").read_text()
    assert f"{by_kind:.1f} dB with rates by kind, {one:.1f} dB at one rate" in front
