"""Every experiment in its quick form: it runs, says what is known, goes on where it was, and can fail."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import normal
from hypothesis import given
from hypothesis import strategies as st
from paths import RESULTS as BENCHMARK_RESULTS
from paths import ROOT

from stackelberg_fused.cli import main

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments import experiment, rates
from stackelberg_fused.benchmarks.experiments.command import EXPERIMENTS
from stackelberg_fused.benchmarks.experiments.quadratic import oscillating, quadratic
from stackelberg_fused.benchmarks.experiments.statistics import difference, interval
from stackelberg_fused.benchmarks.experiments.training import Arm, Digits, Language
from stackelberg_fused.benchmarks.experiments.training_plots import ceiling

RESULTS = BENCHMARK_RESULTS / "experiments"
# what the JSON of a quick run has to show
CELLS = {
    "quadratic": 4,
    "nonconvex": 4,
    "rates": 2 * 2 * 2,
    "digits": 4 * 3,  # for tuning, before the seeds
    "language": 4 * 3,
    "curvature": 2,
    "cartpole": 2 + 2,
    "cost": 1,
    "precision": 2 * 2 * 2,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "cartpole":
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
    assert f"going on with {len(result['cells'])} finished cells" in capsys.readouterr().out
    assert json.loads(file.read_text())["cells"] == result["cells"]


def test_an_interrupted_experiment_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["experiment", "nonconvex", "--quick", "--out", str(tmp_path)]
    write, written = experiment.write_atomically, []

    def interrupted(path: Path, fill: Any) -> None:
        write(path, fill)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "write_atomically", interrupted)
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


def test_results_of_other_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    command = ["experiment", "nonconvex", "--quick", "--out", str(tmp_path)]
    assert main(command) == 0
    file = tmp_path / "nonconvex.json"
    result = json.loads(file.read_text())
    result["settings"]["rates"] = 3
    file.write_text(json.dumps(result))
    with pytest.raises(SystemExit, match="other settings"):
        main(command)


def test_a_check_that_fails_is_said_and_returned(
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


@pytest.mark.parametrize("game", [quadratic(10.0, (100.0, 5.0), "", (0, 1)), oscillating()])
def test_gradients_of_the_games(game: Any) -> None:
    theta, w = (
        normal((3, len(start)), 4 + i).requires_grad_() for i, start in enumerate(game.start)
    )
    expected = torch.autograd.grad(game.value(theta, w).sum(), (theta, w))
    for found, exact in zip(game.gradient(theta, w), expected, strict=True):
        torch.testing.assert_close(found, exact)


def test_the_condition_of_q() -> None:
    joint, phi = quadratic(10.0, (100.0,), "", (0, 1)).condition
    assert joint == pytest.approx(402, abs=0.5)
    assert phi == 1.0


@given(st.tuples(*[st.floats(-1, 1)] * 4), st.floats(0, 1))
def test_phase_retrieval_is_weakly_convex(points: tuple[float, ...], weight: float) -> None:
    """f(., w) + rho / 2 |theta|^2 is convex: its part in theta alone is, and the rest is a square."""
    a, b = torch.tensor(points, dtype=torch.float64).view(2, 2)

    def convex(theta: torch.Tensor) -> float:
        return float(rates.phase_retrieval(theta[None])) + rates.RHO / 2 * float(
            theta.square().sum()
        )

    between = convex(weight * a + (1 - weight) * b)
    assert between <= weight * convex(a) + (1 - weight) * convex(b) + 1e-9


def test_phase_retrieval_is_not_convex() -> None:
    values = [float(rates.phase_retrieval(torch.tensor([[x, 0.0]]))) for x in (-1.0, 0.0, 1.0)]
    assert values[1] > (values[0] + values[2]) / 2


def test_moreau_gradient_vanishes_at_a_minimum_and_is_the_distance_of_the_proximal_point() -> None:
    """Against a general minimiser, at points inside and at the border of the box."""
    from scipy.optimize import minimize

    points = torch.tensor([[0.3, -0.2], [1.0, 0.4], [-0.9, 0.9]])
    for theta, found in zip(points, rates.moreau(points), strict=True):

        def proximal(x: Any, theta: torch.Tensor = theta) -> float:
            at = torch.tensor(x)
            far = float((at - theta.double()).square().sum())
            return float(rates.phase_retrieval(at[None])) + rates.RHO * far

        tries = [
            minimize(proximal, start, method="Nelder-Mead", bounds=[(-1, 1)] * 2,
                     options={"xatol": 1e-9, "fatol": 1e-12})
            for start in (theta.tolist(), [0.5, 0.5], [-0.5, 0.5])
        ]  # fmt: skip
        best = min(tries, key=lambda t: t.fun)
        exact = float(((theta.double() - torch.tensor(best.x)) ** 2).sum()) * (2 * rates.RHO) ** 2
        assert float(found) == pytest.approx(exact, rel=1e-3, abs=1e-9)


def test_intervals() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302653 / math.sqrt(3)), rel=1e-5)
    assert interval([1.0])[1] == math.inf
    assert difference([1.0, 3.0], [1.0, 1.0])[0] == 1.0


def test_the_grid_of_rates_is_extended_until_the_best_is_inside() -> None:
    digits = Digits(quick=False)
    cells: dict[str, Any] = {}
    wanted = -8  # below the grid's first exponent
    stages = digits.stages(cells)
    sizes = []
    for stage in stages:
        sizes.append(len(stage))
        for cell in stage:
            exponent = next(e for e in range(-16, 8) for s in range(6)
                            if cell.key in {arm.key(e, s) for arm in digits.arms})  # fmt: skip
            cells[cell.key] = {
                "train_loss": abs(exponent - wanted),
                "test_loss": 1.0,
                "accuracy": 0.5,
            }
    assert all(digits.best(cells, arm) == wanted for arm in digits.arms)
    assert not any("end of the grid" in line for line in digits.check(cells))
    assert len(sizes) > 3


def test_runs_of_a_seed_begin_alike() -> None:
    """Ratios are compared pair by pair: at a rate of almost nothing they are the same run."""
    digits = Digits(quick=True)
    from stackelberg_fused.benchmarks.experiments.training import train

    runs = [train(digits.task, Arm("SGD", mode, ratio), -16, 3, 2, False)
            for mode in ("simultaneous", "alternating") for ratio in (1, 3)]  # fmt: skip
    for other in runs[1:]:
        assert other["train_loss"] == pytest.approx(runs[0]["train_loss"], rel=1e-6)


# module, and how pip calls it, by experiment
MISSING = [
    *((name, "matplotlib", "matplotlib") for name in EXPERIMENTS),
    *((name, "scipy", "scipy") for name in ("rates", "digits", "language", "curvature")),
    *((name, "scipy", "scipy") for name in ("cartpole", "cost")),
    *((name, "sklearn", "scikit-learn") for name in ("digits", "curvature", "cost")),
    ("cartpole", "gymnasium", "gymnasium"),
]


@pytest.mark.parametrize("name, module, package", MISSING)
def test_what_is_missing_is_said_before_anything_is_computed(
    name: str,
    module: str,
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(SystemExit) as refused:
        main(["experiment", name, "--quick", "--out", str(tmp_path)])
    said = str(refused.value)
    assert said.startswith(f"experiment: {name} needs ")
    assert package in said
    assert "pip install 'stackelberg-fused[game]'" in said
    assert "\n" not in said
    assert "--task" not in said
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_the_extra_that_is_named_has_what_experiments_need() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    text = (ROOT / "pyproject.toml").read_text()
    extra = set(tomllib.loads(text)["project"]["optional-dependencies"]["game"])
    assert {package for _, _, package in MISSING} < extra


@pytest.mark.parametrize("name", ["digits", "cartpole", "curvature", "cost"])
def test_a_result_is_redrawn_without_what_computed_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("gymnasium", "sklearn"):
        monkeypatch.setitem(sys.modules, module, None)
    file = RESULTS / f"{name}.json"
    assert main(["experiment", name, "--redraw", str(file), "--out", str(tmp_path)]) == 0
    assert (tmp_path / f"{name}.png").exists()


def _other(file: Path) -> None:
    file.write_text((RESULTS / "quadratic.json").read_text())


def _unfinished(file: Path) -> None:
    result = json.loads((RESULTS / "digits.json").read_text())
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
def test_a_file_that_cannot_be_redrawn_is_said_in_a_line(
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


@pytest.mark.parametrize("name, losses", [("digits", 2), ("language", 1)])
def test_no_loss_is_a_column_twice(name: str, losses: int) -> None:
    kind = {"digits": Digits, "language": Language}[name](quick=False)
    cells = json.loads((RESULTS / f"{name}.json").read_text())["cells"]
    for table in kind.tables(cells):
        assert sum("loss" in str(column.header) for column in table.columns) == losses
        assert len(table.columns) == 3 + losses + 1


def test_an_axis_ends_where_bad_scores_would_squeeze_the_others() -> None:
    assert ceiling([2.0, 2.1, 2.2, 2.3, 15.0, math.inf]) == pytest.approx(2.2 * 1.1**2)
    assert ceiling([0.002, 0.05, 0.1, 20.0]) == 20.0  # a logarithmic axis shows all of these
    assert ceiling([math.inf]) == 1.0


def test_committed_results_are_redrawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [RESULTS / f"{name}.json" for name in EXPERIMENTS]
    files = [file for file in files if file.exists()]
    assert files
    for file in files:
        assert main(["experiment", file.stem, "--redraw", str(file), "--out", str(tmp_path)]) == 0
        result = json.loads(file.read_text())
        assert result["settings"]["quick"] is False
        assert "+changes" not in result["commit"]
        assert (tmp_path / f"{file.stem}.png").exists()
