"""What a recorder writes for TensorBoard, read back with TensorBoard's own reader."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch
from event_files import scalars
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.report import recorder as module
from stackelberg_fused.report.run_folder import read

pytest.importorskip("tensorboard")


def test_it_is_what_the_recorder_writes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    groups = sf.split_body_head(model, head="2")
    opt = sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=7.0, max_grad_norm=0.1)
    logdir = tmp_path / "events"
    with sf.Recorder(tmp_path / "run", "ratio 7", logdir=logdir) as recorder:
        recorder.evaluation(0, 2.5, accuracy=0.25)
        for step in range(1, 4):
            loss = model(torch.randn(5, 3)).square().mean()
            loss.backward()
            opt.step()
            recorder.step(step, loss, opt, tokens=10 * step)
            opt.zero_grad()
        recorder.evaluation(3, math.nan, follower_gap=0.5)
    (arm,) = read(tmp_path / "run")
    found = scalars(logdir / "ratio-7")
    names = {
        "loss/train": "loss",
        "train/tokens": "tokens",
        **{f"optimizer/lr/{role}": f"rate.{role}" for role in ("body", "head")},
        **{f"optimizer/grad_norm/{r}": f"grad_norm.{r}" for r in ("body", "head", "total")},
        **{f"optimizer/clip_factor/{role}": f"clip_factor.{role}" for role in ("body", "head")},
    }
    evaluated = {"loss/validation", "validation/accuracy", "optimizer/follower_gap"}
    assert found.keys() == names.keys() | evaluated
    for tag, name in names.items():
        expected = [(row.step, row.values[name]) for row in arm.steps]
        assert found[tag] == [(step, pytest.approx(value)) for step, value in expected]
    assert found["validation/accuracy"] == [(0, 0.25)]
    assert found["optimizer/follower_gap"] == [(3, 0.5)]
    assert found["loss/validation"] == [(0, 2.5), (3, pytest.approx(math.nan, nan_ok=True))]
    assert max(value for _, value in found["optimizer/clip_factor/body"]) < 1.0


def _losses(logdir: Path) -> dict[str, list[tuple[int, float]]]:
    return {tag.removeprefix("loss/"): points for tag, points in scalars(logdir / "run").items()}


def test_a_resumed_run_goes_on_with_its_series(tmp_path: Path) -> None:
    with sf.Recorder(tmp_path, logdir=tmp_path) as recorder:
        for step in (1, 2, 3):
            recorder.step(step, float(step))
            recorder.evaluation(step, float(step))
    # the checkpoint was from after the first step
    with sf.Recorder(tmp_path, logdir=tmp_path, resume=True) as recorder:
        for step in (2, 3, 4):
            recorder.step(step, 10.0 * step)
    expected = [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    assert _losses(tmp_path) == {"train": expected, "validation": [(1, 1.0)]}
    # as the page has it
    (arm,) = read(tmp_path)
    assert [(row.step, row.values["loss"]) for row in arm.steps] == expected
    # what begins with an evaluation keeps the step before it
    with sf.Recorder(tmp_path, logdir=tmp_path, resume=True) as recorder:
        recorder.evaluation(3, 3.5)
        recorder.step(4, 4.5)
    found = _losses(tmp_path)
    assert found["train"] == [*expected[:3], (4, 4.5)]
    assert found["validation"] == [(1, 1.0), (3, 3.5)]


def test_a_step_that_comes_again_within_a_run(tmp_path: Path) -> None:
    with sf.Recorder(tmp_path, logdir=tmp_path) as recorder:
        for number, step in enumerate((1, 2, 3, 2, 3)):
            recorder.step(step, float(number))
    assert _losses(tmp_path) == {"train": [(1, 0.0), (2, 3.0), (3, 4.0)]}


def test_a_new_run_of_the_same_name_has_nothing_of_the_old_one(tmp_path: Path) -> None:
    for count in (5, 2):
        with sf.Recorder(tmp_path, logdir=tmp_path) as recorder:
            for step in range(1, count + 1):
                recorder.step(step, float(count))
    assert _losses(tmp_path) == {"train": [(1, 2.0), (2, 2.0)]}


def test_no_number_is_read_earlier_than_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda rows: reads.append(len(rows)) or original(rows))
    began = time.time()
    with sf.Recorder(tmp_path, logdir=tmp_path, flush_every=4) as recorder:
        for step in range(1, 7):
            recorder.step(step, torch.tensor(float(step)))
            assert reads == [4] * (step >= 4)
        until = time.time()
        time.sleep(0.01)
    assert reads == [4, 2]
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    times = [event.wall_time for event in events.Scalars("loss/train")]
    assert began <= times[0] <= times[-1] <= until  # those of the steps, not of the writing


def test_without_tensorboard_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sf.Recorder(tmp_path) as recorder:
        recorder.step(1, 0.5)
    before = recorder.path.read_bytes()
    for name in [*sys.modules]:
        if name.startswith("torch.utils.tensorboard"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        sf.Recorder(tmp_path, logdir=tmp_path / "events")
    assert recorder.path.read_bytes() == before
    assert json.loads(before.splitlines()[1])["loss"] == 0.5
    assert not (tmp_path / "events").exists()
