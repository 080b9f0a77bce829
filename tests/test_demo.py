"""The demo: it writes what it says, stops and goes on exactly, and compares like with like."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stackelberg_fused.cli import main
from stackelberg_fused.demo import checkpoint, data
from stackelberg_fused.demo.gpt import GPT, GPTConfig
from stackelberg_fused.demo.report import verdict
from stackelberg_fused.demo.tasks import TASKS
from stackelberg_fused.demo.trainer import Trainer

pytest.importorskip("rich")
pytest.importorskip("sklearn")

SMALL = GPTConfig(vocabulary=11, context=8, layers=2, heads=2, width=12)
TIMES = ("step_us", "iteration_us")


@pytest.fixture(autouse=True)
def _threads():
    """The command sets the number of threads for its whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(out: Path, *options: object) -> int:
    return main(["train", "--out", str(out), *map(str, options)])


def quick(out: Path, *options: object) -> int:
    return train(out, "--quick", "--steps", 6, "--ratios", 3, *options)


def outcome(out: Path) -> list[tuple[dict, dict]]:
    """Losses and final weights of each run, without the times."""
    runs = checkpoint.load(out / "checkpoint.pt")["runs"]
    assert [run["step_count"] for run in runs] == [6, 6]
    return [
        ({k: v for k, v in run["record"].items() if k not in TIMES}, run["model"]) for run in runs
    ]


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Raise SIGINT in the middle of a step, as Ctrl-C would."""
    advance, done = Trainer.advance, []

    def counted(trainer: Trainer) -> None:
        done.append(1)
        if len(done) == steps:
            signal.raise_signal(signal.SIGINT)
        advance(trainer)

    monkeypatch.setattr(Trainer, "advance", counted)


# --- what a run leaves behind


@pytest.mark.parametrize("task", TASKS)
def test_quick_run_writes_everything(task, tmp_path, capsys):
    assert train(tmp_path, "--quick", "--task", task, "--ratios", 1, 10) == 0
    printed = capsys.readouterr().out
    for word in ("Validation loss", "step() µs", "share", "backend", "torch fused", "One seed"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "loss.png",
        "result.json",
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
    assert train(tmp_path, "--quick", "--lr", lr, "--body-lr", 1e30, "--ratios", 10) == 0
    assert "No ratio helped: ratio 10" in " ".join(capsys.readouterr().out.split())
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["runs"][1]["validation"][-1]["loss"] is None
    assert (tmp_path / "loss.png").exists()


# --- stopping and going on


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
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert "--resume" in output
    assert number.name in output
    saved = checkpoint.load(tmp_path / "checkpoint.pt")
    for run in saved["runs"]:
        assert run["step_count"] == len(run["record"]["train_loss"])
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint.pt"]


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


# --- data


def test_text_split_shares_nothing():
    split = data.split_text()
    (train_bytes,), (held_out,) = split.train, split.validation
    text, other = (bytes(part.tolist()).decode() for part in (train_bytes, held_out))
    assert len(train_bytes) > 400_000
    assert len(held_out) > 30_000
    paragraphs = {p.strip() for p in text.split("\n\n")} & {p.strip() for p in other.split("\n\n")}
    assert not paragraphs
    # Of stretches of 80 bytes, longer than any context, hardly one is known word for word.
    stretches = [other[i : i + 80] for i in range(0, len(other) - 80, 40)]
    assert sum(stretch in text for stretch in stretches) <= 0.01 * len(stretches)
    assert split.sha256() == data.split_text().sha256()


def test_digits_split_shares_nothing():
    split = data.split_digits()
    images, labels = split.train
    others, other_labels = split.validation
    assert (len(images), len(others)) == (len(labels), len(other_labels)) == (1438, 359)
    assert not {tuple(row) for row in images.tolist()} & {tuple(row) for row in others.tolist()}
    assert split.sha256() == data.split_digits().sha256()


def test_text_batches_predict_the_next_byte():
    text = torch.arange(100, dtype=torch.uint8)
    for inputs, targets in (
        data.text_batch(text, 50, 8, torch.Generator().manual_seed(0)),
        data.text_windows(text, 5, 8),
    ):
        assert torch.equal(inputs + 1, targets)
    starts = data.text_windows(text, 1000, 8)[0][:, 0]
    assert (starts.diff() >= 8).all()


# --- the model


def test_gpt_is_causal():
    torch.manual_seed(0)
    model = GPT(SMALL)
    tokens = torch.randint(SMALL.vocabulary, (3, SMALL.context))
    logits = model(tokens)
    assert logits.shape == (3, SMALL.context, SMALL.vocabulary)
    for position in range(SMALL.context):
        changed = tokens.clone()
        changed[:, position] = (changed[:, position] + 1) % SMALL.vocabulary
        others = model(changed)
        assert torch.equal(others[:, :position], logits[:, :position])
        # ... and all that follows does see it.
        assert (others[:, position:] != logits[:, position:]).any(dim=-1).all()


@pytest.mark.parametrize("config", [SMALL, GPTConfig()])
def test_gpt_has_the_parameters_it_should(config):
    width = config.width
    attention = 4 * width * width + 4 * width
    mlp = 8 * width * width + 5 * width
    block = attention + mlp + 4 * width
    embeddings = (config.vocabulary + config.context) * width
    expected = embeddings + config.layers * block + 2 * width + width * config.vocabulary
    assert sum(p.numel() for p in GPT(config).parameters()) == expected


def test_a_head_of_zeros_starts_at_the_loss_of_a_guess():
    for task, classes in (("language", 256), ("digits", 10)):
        trainer = _trainer(task, 1, head_scale=0.0)
        trainer.evaluate()
        assert trainer.record["validation"][0][1] == pytest.approx(math.log(classes))


def test_gpt_generates_within_its_context():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    generated = GPT(SMALL).generate(tokens, 20, torch.Generator().manual_seed(0))
    assert generated.shape == (2, 23)
    assert torch.equal(generated[:, :3], tokens)


# --- the comparison


def _trainer(task: str, index: int, **changes) -> Trainer:
    from stackelberg_fused.demo.settings import DEFAULTS, Settings

    values = {"seed": 0, "backend": "auto", "device": "cpu", "threads": 1, "quick": True}
    settings = Settings(**{"task": task, **DEFAULTS[task], **values, "steps": 20, **changes})
    return Trainer(TASKS[task](quick=True), settings, index)


@pytest.mark.parametrize("task", TASKS)
def test_groups_keep_their_ratio_through_the_schedule(task):
    control = _trainer(task, 0, lr=0.01, body_lr=0.002, ratios=(5.0,))
    trainer = _trainer(task, 1, lr=0.01, body_lr=0.002, ratios=(5.0,))
    peak = 0.0
    for _ in range(20):
        rates = {group["role"]: group["lr"] for group in trainer.optimizer.param_groups}
        (one,) = {group["lr"] for group in control.optimizer.param_groups}
        assert rates["head"] == pytest.approx(5 * rates["body"])
        assert one == pytest.approx(5 * rates["body"])
        peak = max(peak, rates["body"])
        control.advance()
        trainer.advance()
    assert peak == pytest.approx(0.002)
    assert rates["body"] < 0.2 * peak


@pytest.mark.parametrize("task", TASKS)
def test_only_matrices_decay_in_every_run(task):
    for index in (0, 1):
        for group in _trainer(task, index).optimizer.param_groups:
            assert all((p.dim() > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("task", TASKS)
def test_runs_differ_in_nothing_but_the_optimizer(task):
    same_rates = {"lr": 0.003, "body_lr": 0.003, "ratios": (1.0, 10.0)}
    trainers = [_trainer(task, index, **same_rates) for index in range(3)]
    for trainer in trainers:
        for _ in range(20):
            trainer.advance()
    control, again, faster = (trainer.record["train_loss"] for trainer in trainers)
    assert control[0] == again[0] == faster[0]
    assert again == pytest.approx(control, rel=1e-4)
    assert faster != pytest.approx(control, rel=1e-4)


def _record(name: str, ratio: float | None, *losses: float) -> dict:
    points = [(0, 3.0, 0.1), (5, losses[0], 0.3), (10, losses[-1], 0.5)]
    return {"name": name, "ratio": ratio, "body_lr": 0.1, "validation": points}


def test_verdict_claims_no_more_than_one_seed_shows():
    control = _record("torch AdamW", None, 2.0, 1.0)
    better, worse = _record("ratio 3", 3.0, 2.5, 0.9), _record("ratio 10", 10.0, 1.5, 1.2)
    first, second = verdict([control, better, worse])
    assert "ratio 3, 0.9000, 10.0% below one rate. One seed" in first
    assert second == "Did not help: ratio 10 (+20.0% after leading up to step 5)."

    first, second = verdict([control, worse])
    assert "torch AdamW, 1.0000. One seed" in first
    assert second.startswith("No ratio helped: ratio 10 (+20.0%")

    # Ratio 1 at the control's rate is the control: that it ends a hair lower is not a win.
    first, second, third = verdict([control, _record("ratio 1", 1.0, 2.0, 0.999), worse])
    assert "torch AdamW, 1.0000. One seed" in first
    assert second.startswith("No ratio helped")
    assert "rounding alone made -0.10%" in third
