"""`stackelberg demo`: both tasks, one table, stopped and resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from event_files import scalars

from stackelberg_fused.cli import main
from stackelberg_fused.demo.gaussian_optimizers import OneRate
from stackelberg_fused.demo.showcase import remarks
from stackelberg_fused.demo.trainer import Trainer

pytest.importorskip("rich")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def demo(out: Path, *options: str) -> int:
    return main(["demo", "--quick", "--steps", "6", "--ratios", "3", "--out", str(out), *options])


def _words(text: str) -> str:
    return " ".join(text.split())


def test_both_tasks_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(tmp_path) == 0
    printed = capsys.readouterr().out
    long = [line for line in printed.splitlines() if len(line) > 80]
    assert all(str(tmp_path) in line for line in long)
    table = printed[printed.index("One rate for all") :]
    photograph = json.loads((tmp_path / "gaussians" / "result.json").read_text())
    language = json.loads((tmp_path / "language" / "result.json").read_text())
    for name in ("one rate", "by kind"):
        last = [run["psnr"]["60"] for run in photograph["runs"][name].values()]
        assert f" {sum(last) / 2:.2f} " in table
        assert f" {min(last):.2f} to {max(last):.2f} " in table
    for run in language["runs"]:
        assert f"{run['validation'][-1]['loss']:.4f}" in table
    assert "too few to compare" in table
    for picture in ("gaussians/gaussians.png", "language/loss.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert str(tmp_path / picture) in table
    assert str(tmp_path / "language" / "report.html") in table


def _interrupt(monkeypatch: pytest.MonkeyPatch, cls: type, name: str, after: int) -> None:
    """Have the n-th call of a method raise SIGINT, as Ctrl-C does."""
    method, calls = getattr(cls, name), []

    def counted(self: object) -> None:
        calls.append(1)
        if len(calls) == after:
            signal.raise_signal(signal.SIGINT)
        method(self)

    monkeypatch.setattr(cls, name, counted)


@pytest.mark.parametrize(("cls", "name"), [(OneRate, "step"), (Trainer, "advance")])
def test_stopped_in_either_task_and_resumed(
    cls: type,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        _interrupt(patched, cls, name, after=5)
        assert demo(tmp_path) == 128 + signal.SIGINT
    said = _words(capsys.readouterr().out)
    assert f"demo --out {tmp_path} --quick --resume" in said
    assert "One rate for all" not in said
    assert demo(tmp_path, "--resume") == 0
    assert "One rate for all" in capsys.readouterr().out
    language = json.loads((tmp_path / "language" / "result.json").read_text())
    assert [len(run["train_loss"]) for run in language["runs"]] == [6, 6]
    # all is there: only the report is written again
    monkeypatch.setattr(Trainer, "advance", None)
    monkeypatch.setattr(OneRate, "step", None)
    assert demo(tmp_path, "--resume") == 0


def test_tensorboard_has_both_tasks(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logdir = tmp_path / "events"
    assert demo(tmp_path, "--logdir", str(logdir)) == 0
    assert {p.name for p in (logdir / "language").iterdir()} == {"torch-AdamW", "ratio-3"}
    photograph = json.loads((tmp_path / "gaussians" / "result.json").read_text())
    for side, runs in photograph["runs"].items():
        for seed, run in runs.items():
            found = scalars(logdir / "gaussians" / f"{side.replace(' ', '-')}-seed-{seed}")
            expected = [(int(step), pytest.approx(psnr)) for step, psnr in run["psnr"].items()]
            assert found["validation/psnr"] == expected
            assert [step for step, _ in found["optimizer/lr/opacity"]] == [s for s, _ in expected]


def test_nothing_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo(tmp_path, "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_said_follows_the_seeds() -> None:
    assert "with 2 of 3 seeds" in remarks([1.0, 2.0, -0.5], is_trial=False)[0]
    assert "too few" in remarks([1.0], is_trial=True)[0]
