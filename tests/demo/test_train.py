"""The demo as a program: it writes its files, stops and resumes exactly, and refuses bad options."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import patience

from stackelberg_fused.cli import main
from stackelberg_fused.demo import checkpoint
from stackelberg_fused.demo.report import FEWEST_STEPS
from stackelberg_fused.demo.tasks import TASKS
from stackelberg_fused.demo.trainer import Trainer

pytest.importorskip("rich")
pytest.importorskip("sklearn")

TIMES = ("step_us", "iteration_us")
RECORDED = ("torch-AdamW.steps.jsonl", "ratio-3.steps.jsonl")


def train(out: Path, *options: object) -> int:
    return main(["train", "--out", str(out), *map(str, options)])


def quick(out: Path, *options: object) -> int:
    return train(out, "--quick", "--steps", 6, "--ratios", 3, *options)


def files(out: Path) -> set[str]:
    return {path.name for path in out.iterdir()}


def outcome(out: Path) -> list[tuple[dict, dict]]:
    """Return the record without times, and the final weights, of each run."""
    runs = checkpoint.load(out / "checkpoint.pt")["runs"]
    assert [run["step_count"] for run in runs] == [6, 6]
    return [
        ({k: v for k, v in run["record"].items() if k not in TIMES}, run["model"]) for run in runs
    ]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Make step number `steps` raise SIGINT, as Ctrl-C does."""
    advance, done = Trainer.advance, []

    def counted(trainer: Trainer) -> None:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)
        advance(trainer)

    monkeypatch.setattr(Trainer, "advance", counted)


# --- the files of a run


@pytest.mark.parametrize("task", TASKS)
def test_quick_run_writes_everything(task, tmp_path, capsys):
    assert train(tmp_path, "--quick", "--task", task, "--ratios", 1, 10) == 0
    printed = capsys.readouterr().out
    for word in ("Validation loss", "step() µs", "share", "backend", "torch fused", "too few to"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "loss.png",
        "ratio-1.steps.jsonl",
        "ratio-10.steps.jsonl",
        "report.html",
        "result.json",
        "torch-AdamW.steps.jsonl",
    ]
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["settings"]["task"] == task
    assert result["settings"]["seed"] == 0
    assert {"sha256", "source", "model", "batch_size"} <= set(result["data"])
    assert {"torch", "python", "cpu", "cores", "stackelberg_fused"} <= set(result["environment"])
    assert [run["name"] for run in result["runs"]] == ["torch AdamW", "ratio 1", "ratio 10"]
    steps = result["settings"]["steps"]
    for run in result["runs"]:
        assert len(run["train_loss"]) == steps
        assert [run["validation"][i]["step"] for i in (0, -1)] == [0, steps]
        assert 0 < run["timing"]["step_share"] < 1
        assert run["timing"]["step_us_p20"] <= run["timing"]["step_us_p50"]
    assert result["runs"][0]["ratio"] is None
    assert result["runs"][2]["head_lr"] == pytest.approx(10 * result["runs"][2]["body_lr"])
    assert result["verdict"]


@pytest.mark.parametrize("lr", [1e-3, 1e30])
def test_a_diverged_run_is_reported_not_hidden(lr, tmp_path, capsys):
    options = ("--lr", lr, "--body-lr", 1e30, "--ratios", 10)
    assert train(tmp_path, "--quick", "--steps", FEWEST_STEPS, *options) == 0
    assert "No ratio helped: ratio 10" in " ".join(capsys.readouterr().out.split())
    assert train(tmp_path, "--quick", *options) == 0
    diverged = "torch AdamW, ratio 10" if lr > 1 else "ratio 10"
    assert f"compare anything. Diverged: {diverged}." in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["runs"][1]["validation"][-1]["loss"] is None
    assert (tmp_path / "loss.png").exists()


# --- stop and resume


@pytest.fixture
def _no_picture(monkeypatch):
    monkeypatch.setattr("stackelberg_fused.demo.train.draw", lambda *_: None)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    assert quick(out) == 0
    return outcome(out)


# Two runs of 6 steps in turns: every place where a step can end, up to the last.
@pytest.mark.usefixtures("_no_picture")
@pytest.mark.parametrize("steps", range(1, 13))
def test_resume_is_exact(steps, uninterrupted, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stop_after(patched, steps)
        assert quick(tmp_path) == 128 + signal.SIGINT
    assert f"--out {tmp_path} --resume" in capsys.readouterr().out
    torch.manual_seed(1234)  # whatever the process did in between
    assert train(tmp_path, "--resume") == 0
    for (record, weights), (expected, expected_weights) in zip(
        outcome(tmp_path), uninterrupted, strict=True
    ):
        assert record == expected
        assert weights.keys() == expected_weights.keys()
        assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


@pytest.mark.usefixtures("_no_picture")
def test_resume_of_a_finished_demo_only_reports(tmp_path, monkeypatch):
    assert quick(tmp_path) == 0
    (tmp_path / "result.json").unlink()
    monkeypatch.setattr(Trainer, "advance", None)
    assert train(tmp_path, "--resume") == 0
    assert (tmp_path / "result.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals between processes")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_usable_checkpoint(number, tmp_path):
    command = [sys.executable, "-m", "stackelberg_fused", "train", "--quick"]
    command += ["--steps", "1000000", "--ratios", "3", "--out", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # Its first losses are out, so it is training.
        assert any(line.startswith("step 0/") for line in process.stdout)
        process.send_signal(number)
        output, errors = process.communicate(timeout=patience(10))
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "--resume" in output
    assert number.name in output
    saved = checkpoint.load(tmp_path / "checkpoint.pt")
    for run in saved["runs"]:
        assert run["step_count"] == len(run["record"]["train_loss"])
    assert files(tmp_path) == {"checkpoint.pt", *RECORDED}


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"value": 1})

    def half_a_file(content, partial):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_a_file)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, {"value": 2})
    assert checkpoint.load(path)["value"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.usefixtures("_no_picture")
def test_a_full_disk_is_named_and_what_is_good_is_said(error, tmp_path, monkeypatch, capsys):
    path, written, save = tmp_path / "checkpoint.pt", [], torch.save

    def full_after_the_first(content, partial):
        if written:
            partial.write_bytes(b"half")
            raise error
        written.append(partial)
        save(content, partial)

    monkeypatch.setattr(torch, "save", full_after_the_first)
    assert quick(tmp_path) == 2
    output = capsys.readouterr()
    message = " ".join(output.err.split())
    assert f"error: {path} could not be written, the one that was there is as it was" in message
    assert str(error) in message
    said = "".join(output.out.split())
    assert f"Thecheckpoint{path}isgood." in said
    assert "--resume" in said
    assert files(tmp_path) == {path.name, *RECORDED}
    monkeypatch.setattr(torch, "save", save)
    assert quick(tmp_path, "--resume") == 0
    # nor is there any talk of one, where there is none
    written.append(None)
    monkeypatch.setattr(torch, "save", full_after_the_first)
    assert quick(tmp_path / "new") == 2
    output = capsys.readouterr()
    assert "there is none" in " ".join(output.err.split())
    assert "is good" not in output.out


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    path = tmp_path / "checkpoint.pt"
    left = tmp_path / f"checkpoint.pt.{child.pid}.partial"
    kept = [
        tmp_path / f"checkpoint.pt.{os.getppid()}.partial",  # of one that still runs
        tmp_path / f"result.json.{child.pid}.partial",  # of another file
        tmp_path / "checkpoint.pt.mine.partial",
    ]
    for file in (left, *kept):
        file.write_bytes(b"half")
    checkpoint.save(path, {"value": 1})
    assert checkpoint.load(path)["value"] == 1
    assert set(tmp_path.iterdir()) == {path, *kept}


@pytest.mark.usefixtures("_no_picture")
def test_a_new_start_keeps_the_earlier_checkpoint(tmp_path):
    assert quick(tmp_path, "--seed", 1) == 0
    assert quick(tmp_path, "--seed", 2) == 0
    earlier = checkpoint.load(tmp_path / "checkpoint.previous.pt")
    assert earlier["settings"]["seed"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "there is no checkpoint"),
        (["--quick", "--backend", "abacus"], "abacus"),
        (["--quick", "--device", "abacus"], "abacus"),
        pytest.param(
            ["--quick", "--device", "cuda"],
            "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_what_cannot_run_is_refused_at_once(options, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "advance", None)
    assert train(tmp_path, *options) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_no_picture")
def test_resume_refuses_other_settings_and_other_files(tmp_path, capsys):
    assert quick(tmp_path) == 0
    assert train(tmp_path, "--resume", "--steps", 7) == 2
    assert "--steps 7 contradicts" in capsys.readouterr().err
    assert train(tmp_path, "--resume", "--steps", 6, "--quick", "--ratios", 3) == 0
    (tmp_path / "checkpoint.pt").write_bytes(b"something else")
    assert train(tmp_path, "--resume") == 2
    assert "not a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--lr", "0"), ("--ratios", "-1"), ("--steps", "1.5"), ("--head-scale", "nan")]
)
def test_senseless_options_are_refused(option, tmp_path):
    with pytest.raises(SystemExit):
        train(tmp_path, *option)
