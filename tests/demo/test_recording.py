"""What a demo records of itself, also across a stop: it says what the demo's own report says."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import stackelberg_fused as sf
from stackelberg_fused.cli import main
from stackelberg_fused.demo.follower_gap import PART, WHOLE, follower_gap, how, measure
from stackelberg_fused.demo.settings import DEFAULTS, Settings
from stackelberg_fused.demo.tasks import TASKS, digits_mlp
from stackelberg_fused.demo.trainer import Trainer
from stackelberg_fused.report.run_folder import read

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("scipy")

STEPS = 20


def train(out: Path, *options: object) -> int:
    return main(["train", "--quick", "--out", str(out), *map(str, options)])


@pytest.mark.parametrize("task", TASKS)
def test_every_run_is_recorded_as_it_was(task: str, tmp_path: Path) -> None:
    assert train(tmp_path, "--task", task, "--ratios", 10) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    arms = read(tmp_path)
    assert [arm.name for arm in arms] == ["torch AdamW", "ratio 10"]
    for arm, run in zip(arms, result["runs"], strict=True):
        assert arm.complete
        assert [row.values["loss"] for row in arm.steps] == run["train_loss"]
        assert [row.step for row in arm.steps] == list(range(1, STEPS + 1))
        for key in ("loss", "accuracy"):
            assert [r.values[key] for r in arm.evaluations] == [p[key] for p in run["validation"]]
        names = {"rate.body", "rate.head", "grad_norm.body", "grad_norm.head", "step_us"}
        assert all(names <= row.values.keys() for row in arm.steps)
        peak = max(arm.steps, key=lambda row: row.values["rate.head"]).values
        assert peak["rate.head"] == pytest.approx(run["head_lr"])
        assert peak["rate.body"] == pytest.approx(run["body_lr"])
        gaps = {
            r.step: r.values["follower_gap"] for r in arm.evaluations if "follower_gap" in r.values
        }
        assert gaps.keys() == {round(share * STEPS) for share in measure(TASKS[task](True)).at}
        assert all(gap > 0 for gap in gaps.values())
    page = (tmp_path / "report.html").read_text()
    for name in ("Validation loss", "Learning rates", "Gradient norm, head", "Follower gap"):
        assert f"<h3>{name}</h3>" in page
    # both start at the same weights and on the same batch
    first, second = (arm.steps[0].values for arm in arms)
    assert first["loss"] == second["loss"]
    assert first["grad_norm.body"] == pytest.approx(second["grad_norm.body"])


def test_a_resumed_demo_goes_on_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    advance, made = Trainer.advance, []

    def counted(trainer: Trainer) -> None:
        made.append(1)
        if len(made) == 9:
            signal.raise_signal(signal.SIGINT)
        advance(trainer)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "advance", counted)
        assert train(tmp_path, "--steps", 6, "--ratios", 3) == 128 + signal.SIGINT
    stopped = read(tmp_path)
    assert [arm.complete for arm in stopped] == [False, False]
    assert sum(arm.last_step for arm in stopped) == 9
    assert train(tmp_path, "--resume") == 0
    for arm in read(tmp_path):
        assert arm.complete
        assert [row.step for row in arm.steps] == [1, 2, 3, 4, 5, 6]
        assert [row.step for row in arm.evaluations] == list(range(7))
    # a new demo leaves nothing of the old one's runs
    assert train(tmp_path, "--steps", 6, "--ratios", 30) == 0
    assert [arm.name for arm in read(tmp_path)] == ["torch AdamW", "ratio 30"]


def test_a_demo_without_scipy_has_no_follower_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stackelberg_fused.demo.follower_gap.best_response", _no_scipy)
    assert train(tmp_path, "--steps", 6, "--ratios", 3) == 0
    assert "Follower gap: it was not measured." in (tmp_path / "report.html").read_text()


def _no_scipy(*_: object, **__: object) -> None:
    raise ModuleNotFoundError("No module named 'scipy'")


def test_the_follower_gap_is_that_of_the_library() -> None:
    task = TASKS["digits"](False)
    values = {"seed": 3, "backend": "auto", "device": "cpu", "threads": 1, "quick": True}
    settings = Settings(**{"task": "digits", **DEFAULTS["digits"], **values, "steps": 20})
    model = digits_mlp()
    before = [p.detach().clone() for p in model.parameters()]
    state = torch.get_rng_state()
    (gap,) = follower_gap(task, model, 10, settings).values()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    ((inputs, targets),) = task.training
    expected = sf.stackelberg_value(
        model[:-1], model[-1], inputs, targets, "cross_entropy", WHOLE.ridge
    )
    assert gap == pytest.approx(expected.follower_gap, abs=WHOLE.tolerance)
    assert gap > 0.1
    # without the whole training set it is that of a part of a batch
    inputs, targets = task.batch(torch.Generator().manual_seed(3))
    part = dataclasses.replace(task, training=[])
    (gap,) = follower_gap(part, model, 10, settings).values()
    expected = sf.stackelberg_value(
        model[:-1], model[-1], inputs, targets, "cross_entropy", PART.ridge
    )
    assert gap == pytest.approx(expected.follower_gap, abs=PART.tolerance)
    assert str(PART.rows) in how(part)
    assert "training set" in how(task)
    # it is measured at some steps only, and not of a model that has diverged
    assert follower_gap(task, model, 11, settings) == {}
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    assert follower_gap(task, model, 10, settings) == {}
