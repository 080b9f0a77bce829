"""The demo's Gaussians: at the rates that the experiment found best, and resumed without a difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import EXPERIMENT_RESULTS
from rich.console import Console

pytest.importorskip("sklearn")
pytest.importorskip("scipy")

from stackelberg_fused.benchmarks.experiments.gaussians import Gaussians

from stackelberg_fused.demo.checkpoint import CheckpointError, StopRequest
from stackelberg_fused.demo.gaussian_model import KINDS
from stackelberg_fused.demo.gaussian_runs import SEEDS, SIDES, GaussianRuns, mean_and_range

QUIET = Console(quiet=True)


class StopAfter(StopRequest):
    """Asks to stop once it was asked a number of times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def _runs(folder: Path, resumes: bool = False) -> GaussianRuns:
    return GaussianRuns(folder, quick=True, resumes=resumes)


def test_rates_are_the_best_of_the_experiment() -> None:
    cells = json.loads((EXPERIMENT_RESULTS / "gaussians.json").read_text())["cells"]
    experiment = Gaussians(quick=False)
    for name, side in SIDES.items():
        arm = experiment.pictured(cells, name)
        assert side.schedule == arm.schedule
        rates = arm.rates(experiment.best(cells, arm))
        assert side.rates == pytest.approx({kind: rates[kind] for kind in KINDS})
    assert not set(SEEDS) & set(experiment.tuning_seeds)


@pytest.mark.parametrize("times", [5, 60, 130])
def test_stopped_and_resumed_is_uninterrupted(times: int, tmp_path: Path) -> None:
    whole = _runs(tmp_path / "whole")
    whole.path.parent.mkdir()
    whole.train(StopRequest(), QUIET)
    stopped = _runs(tmp_path)
    stopped.train(StopAfter(times), QUIET)
    finished = times // stopped.size.steps
    assert len(stopped.missing()) == len(whole.seeds) * len(SIDES) - finished
    resumed = _runs(tmp_path, resumes=True)
    assert len(resumed.missing()) == len(stopped.missing())
    resumed.train(StopRequest(), QUIET)
    assert resumed.found == whole.found
    assert resumed.gains() == whole.gains()
    assert [run["launches"] for run in whole.runs("by kind")] == [whole.size.steps] * 2
    # without being asked to go on it begins anew
    assert len(_runs(tmp_path).missing()) == len(whole.seeds) * len(SIDES)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 1, "settings": {}, "runs": {}}', None]
)
def test_other_files_are_refused(content: str | None, tmp_path: Path) -> None:
    if content is None:  # ours, but for its runs
        content = json.dumps({"format": 1, "settings": _runs(tmp_path).settings(), "runs": {}})
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"result\.json"):
        _runs(tmp_path, resumes=True)


def test_mean_and_range() -> None:
    assert mean_and_range([1.0, 4.0, 2.5], "+.1f") == "+2.5\n+1.0 to +4.0"
