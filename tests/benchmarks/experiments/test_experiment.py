"""Modules that an experiment needs are looked for before anything is computed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from paths import ROOT

from stackelberg_fused.cli import main

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from stackelberg_fused.benchmarks.experiments.command import EXPERIMENTS

# module, and how pip calls it, by experiment
MISSING = [
    *((name, "matplotlib", "matplotlib") for name in EXPERIMENTS),
    *((name, "scipy", "scipy") for name in ("rates", "digits", "language", "curvature")),
    *(
        (name, "scipy", "scipy")
        for name in ("actor", "cartpole", "cost", "finetune", "gaussians", "kinds")
    ),
    ("kinds", "optuna", "optuna"),
    *((name, "sklearn", "scikit-learn") for name in ("digits", "curvature", "cost", "gaussians")),
    ("finetune", "sklearn", "scikit-learn"),
    *((name, "gymnasium", "gymnasium") for name in ("actor", "cartpole")),
]


@pytest.mark.parametrize("name, module, package", MISSING)
def test_missing_packages_are_named_before_anything_is_computed(
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


def test_the_extra_that_is_named_has_the_packages_that_experiments_need() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    text = (ROOT / "pyproject.toml").read_text()
    extra = set(tomllib.loads(text)["project"]["optional-dependencies"]["game"])
    assert {package for _, _, package in MISSING} < extra
