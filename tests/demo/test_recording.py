"""What a demo records of itself, also across a stop: it says what the demo's own report says."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import sys
from pathlib import Path

import pytest
import torch
from event_files import scalars

import stackelberg_fused as sf
from stackelberg_fused.cli import main
from stackelberg_fused.demo.follower_gap import PART, WHOLE, follower_gap, how, measure
from stackelberg_fused.demo.settings import DEFAULTS, Settings
from stackelberg_fused.demo.tasks import TASKS, digits_mlp
from stackelberg_fused.demo.trainer import Trainer
from stackelberg_fused.report.run_folder import SUFFIX, read

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


def _stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this step raise SIGINT, as Ctrl-C does."""
    advance, made = Trainer.advance, []

    def counted(trainer: Trainer) -> None:
        made.append(1)
        if len(made) == steps:
            signal.raise_signal(signal.SIGINT)
        advance(trainer)

    monkeypatch.setattr(Trainer, "advance", counted)


def test_a_resumed_demo_goes_on_with_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        _stop_after(9, patched)
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


def test_tensorboard_has_the_series_of_a_demo_that_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    out, logdir = tmp_path / "out", tmp_path / "events"
    options = ("--steps", 6, "--ratios", 3, "--task", "digits")
    with monkeypatch.context() as patched:
        _stop_after(9, patched)
        assert train(out, *options, "--logdir", logdir) == 128 + signal.SIGINT
    how = " ".join(capsys.readouterr().out.split())
    assert f"--out {out} --logdir {logdir} --resume" in how
    # steps that no checkpoint has, as after a kill
    for name in ("torch AdamW", "ratio 3"):
        with sf.Recorder(out, name, resume=True, logdir=logdir) as recorder:
            recorder.step(6, 99.0)
    assert train(out, "--resume", "--logdir", logdir) == 0
    assert {path.name for path in logdir.iterdir()} == {"torch-AdamW", "ratio-3"}
    for arm in read(out):
        found = scalars(logdir / arm.path.name.removesuffix(SUFFIX))
        for tag, rows, name in (
            ("loss/train", arm.steps, "loss"),
            ("loss/validation", arm.evaluations, "loss"),
            ("validation/accuracy", arm.evaluations, "accuracy"),
            ("optimizer/lr/head", arm.steps, "rate.head"),
            ("optimizer/grad_norm/body", arm.steps, "grad_norm.body"),
        ):
            expected = [(row.step, pytest.approx(row.values[name])) for row in rows]
            assert found[tag] == expected, tag
        gaps = [(r.step, r.values) for r in arm.evaluations if "follower_gap" in r.values]
        measured = [(step, pytest.approx(values["follower_gap"])) for step, values in gaps]
        assert found["optimizer/follower_gap"] == measured
        assert len(found["loss/train"]) == 6


@pytest.mark.parametrize("command", ["train", "demo"])
def test_without_tensorboard_nothing_is_trained_or_replaced(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "checkpoint.pt").write_text("an old one")
    for name in [*sys.modules]:
        if name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    logdir = tmp_path / "events"
    assert main([command, "--out", str(tmp_path), "--quick", "--logdir", str(logdir)]) == 2
    assert "error: --logdir: TensorBoard is needed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_text() == "an old one"


def test_a_folder_for_tensorboard_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    assert train(tmp_path / "out", "--logdir", tmp_path / "file" / "events") == 2
    assert (
        f"error: --logdir: [Errno 20] Not a directory: '{tmp_path}/file" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


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
