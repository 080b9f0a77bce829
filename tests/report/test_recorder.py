"""What a recorder writes: what torch says of a step, read from the device only when lines are written."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.report import recorder as module
from stackelberg_fused.report.recorder import Recorder
from stackelberg_fused.report.run_folder import read


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=None) for line in path.read_text().splitlines()]


def two_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def backward(model: nn.Module) -> torch.Tensor:
    loss = model(torch.randn(5, 3)).square().mean()
    loss.backward()
    return loss


def norm(params: list[nn.Parameter]) -> float:
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in params))


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("limit", [None, math.inf, 0.1])
def test_a_step_tells_rates_norms_and_clip_factors(
    ours: bool, limit: float | None, tmp_path: Path
) -> None:
    model = two_layers()
    groups = sf.split_body_head(model, head="2", no_decay=True)
    opt = (
        sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=7.0, max_grad_norm=limit)
        if ours
        else torch.optim.AdamW([{**g, "lr": 1e-3 if g["role"] == "body" else 7e-3} for g in groups])
    )
    with Recorder(tmp_path, "one") as recorder:
        loss = backward(model)
        opt.step()
        recorder.step(1, loss, opt, extra=np.float32(0.5))
        expected = {
            "body": norm(list(model[0].parameters())),
            "head": norm(list(model[2].parameters())),
            "total": norm(list(model.parameters())),
        }
        opt.zero_grad()
    header, step, end = lines(tmp_path / "one.steps.jsonl")
    assert (header["kind"], header["arm"], end) == ("run", "one", {"kind": "end", "finished": True})
    assert step["loss"] == loss.item()
    assert step["rate"] == pytest.approx({"body": 1e-3, "head": 7e-3})
    assert step["grad_norm"] == pytest.approx(expected, rel=1e-6)
    assert step["extra"] == 0.5
    if ours and limit is not None:
        factor = min(1.0, limit / (expected["total"] + 1e-6))
        assert step["clip_factor"] == pytest.approx({"body": factor, "head": factor})
    else:
        assert "clip_factor" not in step


def test_a_player_that_rested_has_no_point(tmp_path: Path) -> None:
    model = two_layers()
    opt = sf.StackelbergAdamW(sf.split_body_head(model, head="2"), max_grad_norm=1.0)
    with Recorder(tmp_path, "one") as recorder:
        loss = backward(model)
        opt.step(role="head")
        recorder.step(1, loss, opt)
    _, step, _ = lines(tmp_path / "one.steps.jsonl")
    assert step["grad_norm"].keys() == {"head", "total"}
    assert step["clip_factor"].keys() == {"head"}


def test_recording_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for is_recorded in (False, True):
        torch.manual_seed(0)
        model = two_layers()
        opt = sf.StackelbergAdamW(sf.split_body_head(model, head="2"), lr=1e-2)
        with Recorder(tmp_path) as recorder:
            for step in range(1, 6):
                loss = backward(model)
                opt.step()
                if is_recorded:
                    recorder.step(step, loss, opt)
                opt.zero_grad()
        weights.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_gradients_that_hold_the_scale_of_a_loss_have_no_norm(tmp_path: Path) -> None:
    model = two_layers()
    opt = sf.StackelbergAdamW(sf.split_body_head(model, head="2"), lr=1e-2)
    scaler = sf.GradScaler("cpu", init_scale=1024.0)
    with Recorder(tmp_path) as recorder:
        for step, limit in ((1, None), (2, math.inf)):
            opt.max_grad_norm = limit
            model.zero_grad()
            loss = model(torch.randn(5, 3)).square().mean()
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
            recorder.step(step, loss, opt)
    _, scaled, measured, _ = lines(recorder.path)
    assert "grad_norm" not in scaled
    assert measured["grad_norm"]["total"] == pytest.approx(norm(list(model.parameters())) / 1024)
    assert scaled["skipped"] == measured["skipped"] == 0


def test_plain_groups_have_numbers_and_names(tmp_path: Path) -> None:
    model = two_layers()
    names = [{"name": "first"}, {}, {"name": "last"}, {"name": "last"}]
    rates = (0.1, 0.2, 0.3, 0.4)
    opt = torch.optim.SGD(
        [{"params": [p], "lr": lr, **name} for p, lr, name in zip(model.parameters(), rates, names)]  # noqa: B905
    )
    with Recorder(tmp_path) as recorder:
        recorder.step(1, 0.0, opt)  # no gradients
        loss = backward(model)
        recorder.step(2, loss, opt)
    _, first, second, _ = lines(recorder.path)
    assert first["rate"] == {"first": 0.1, "group 1": 0.2, "last 2": 0.3, "last 3": 0.4}
    assert "grad_norm" not in first
    assert second["grad_norm"] == {"total": pytest.approx(norm(list(model.parameters())), rel=1e-6)}


def test_groups_of_one_name_that_part_are_all_recorded(tmp_path: Path) -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(2)]
    opt = torch.optim.SGD([{"params": [p], "name": "body"} for p in params], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, [lambda _: 1.0, lambda step: 0.5**step])
    with Recorder(tmp_path) as recorder:
        for step in (1, 2):
            recorder.step(step, 0.0, opt)
            opt.step()
            schedule.step()
    _, first, second, _ = lines(recorder.path)
    assert first["rate"] == {"body": 0.1}
    assert second["rate"] == {"body 0": 0.1, "body 1": 0.05}


class Shard(torch.Tensor):
    """As torch's DTensor: what reads it whole asks the other ranks."""

    def full_tensor(self) -> torch.Tensor:
        raise AssertionError("nobody answers")


@pytest.mark.parametrize("kind", ["sparse", "sharded"])
def test_gradients_of_other_kinds_have_no_norm(kind: str, tmp_path: Path) -> None:
    param = nn.Parameter(torch.ones(3, 2))
    param.grad = (
        torch.ones(3, 2).to_sparse() if kind == "sparse" else torch.ones(3, 2).as_subclass(Shard)
    )
    with Recorder(tmp_path) as recorder:
        recorder.step(1, 0.0, torch.optim.SGD([param], lr=0.1))
    assert lines(recorder.path)[1] == {
        "kind": "step",
        "step": 1,
        "loss": 0.0,
        "rate": {"group 0": 0.1},
    }


def test_of_many_rates_a_summary_is_kept(tmp_path: Path) -> None:
    params = [nn.Parameter(torch.ones(1)) for _ in range(465)]
    opt = torch.optim.SGD([{"params": [p], "lr": 1.0 + i} for i, p in enumerate(params)])
    with Recorder(tmp_path) as recorder:
        recorder.step(1, 0.0, opt)
    assert lines(recorder.path)[1]["rate"] == {"lowest": 1.0, "median": 233.0, "highest": 465.0}


def test_numbers_on_a_device_are_read_together_and_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_at = []
    monkeypatch.setattr(module, "kept", lambda value: torch.as_tensor(value).detach().clone())
    original = module._read
    monkeypatch.setattr(module, "_read", lambda rows: read_at.append(len(rows)) or original(rows))
    recorder = Recorder(tmp_path, flush_every=3)
    loss = torch.zeros(())
    for step in range(1, 8):
        loss += 1.0  # as a CUDA graph does
        recorder.step(step, loss)
    assert read_at == [3, 3]
    recorder.evaluation(7, 0.5)
    assert read_at == [3, 3, 2]
    recorder.close()
    assert [row["loss"] for row in lines(recorder.path)[1:-1]] == [*map(float, range(1, 8)), 0.5]


@pytest.mark.gpu
def test_on_a_gpu_a_step_waits_for_nothing(tmp_path: Path) -> None:
    model = two_layers().cuda()
    opt = sf.StackelbergAdamW(sf.split_body_head(model, head="2"), lr=1e-3, max_grad_norm=1.0)
    plain = torch.optim.AdamW(sf.split_body_head(model, head="2"))
    recorder = Recorder(tmp_path)
    loss = model(torch.randn(5, 3, device="cuda")).square().mean()
    loss.backward()
    opt.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        recorder.step(1, loss, opt)
        recorder.step(2, loss, plain)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.close()
    _, ours, theirs, _ = lines(recorder.path)
    assert ours["loss"] == theirs["loss"] == loss.item()
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)


def test_what_json_has_no_number_for_is_text(tmp_path: Path) -> None:
    settings = {
        "path": Path("a/b"),
        "betas": (0.9, 0.99),
        "none": None,
        "inf": math.inf,
        "of numpy": np.float32(2.0),
        "of torch": torch.tensor(3),
        "many": torch.ones(2),
    }
    with Recorder(tmp_path, settings=settings) as recorder:
        for step, loss in enumerate((math.nan, math.inf, -math.inf), 1):
            recorder.step(step, loss)
    header, *steps, _ = lines(recorder.path)
    assert [step["loss"] for step in steps] == ["nan", "inf", "-inf"]
    assert header["settings"] == {
        "path": "a/b",
        "betas": [0.9, 0.99],
        "none": None,
        "inf": "inf",
        "of numpy": 2.0,
        "of torch": 3,
        "many": "tensor([1., 1.])",
    }


def test_every_nth_step_and_the_last(tmp_path: Path) -> None:
    with Recorder(tmp_path, steps=10, every=4) as recorder:
        for step in range(1, 11):
            recorder.step(step, 0.0)
    assert [row["step"] for row in lines(recorder.path)[1:-1]] == [4, 8, 10]


def test_an_error_and_a_kill_leave_a_run_that_did_not_finish(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "stopped", steps=9)
    recorder.step(1, 0.5)
    with pytest.raises(KeyboardInterrupt), recorder:
        raise KeyboardInterrupt
    killed = Recorder(tmp_path, "killed", steps=9)
    killed.step(1, 0.5)
    killed.flush()
    with killed.path.open("a") as file:
        file.write('{"kind": "step", "st')
    stopped, arm = read(tmp_path)
    assert (stopped.finished, stopped.last_step, stopped.complete) == (False, 1, False)
    assert (arm.finished, arm.last_step, arm.unreadable) == (None, 1, 1)
    # and goes on behind the half line
    with Recorder(tmp_path, "killed", steps=2, resume=True) as again:
        again.step(2, 0.25)
    _, arm = read(tmp_path)
    assert (arm.complete, arm.unreadable) == (True, 1)
    assert [row.values["loss"] for row in arm.steps] == [0.5, 0.25]
    again.close(finished=False)  # the second time it does nothing
    assert read(tmp_path)[1].complete


def test_a_new_run_replaces_the_old_one(tmp_path: Path) -> None:
    for loss in (1.0, 2.0):
        with Recorder(tmp_path) as recorder:
            recorder.step(1, loss)
    assert [row["loss"] for row in lines(recorder.path)[1:-1]] == [2.0]


def test_what_is_wrong_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with Recorder(tmp_path, "ratio 3") as recorder:
        recorder.step(1, 1.0)
    before = recorder.path.read_bytes()
    with pytest.raises(ValueError, match="'ratio 3', 'ratio-3' needs another name"):
        Recorder(tmp_path, "ratio-3")
    for name in ("steps", "every", "flush_every"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more"):
            Recorder(tmp_path, "ratio 3", **{name: 0})
    assert recorder.path.read_bytes() == before
    recorder = Recorder(tmp_path, "other")
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        recorder.step(1, torch.ones(2))
    with pytest.raises(TypeError):
        recorder.step(1, 1.0, extra=[1.0])
    with pytest.raises(ValueError, match="cannot be called 'kind'"):
        recorder.step(1, 1.0, kind=1.0)
    with pytest.raises(ValueError, match="cannot be called 'kind'"):
        recorder.evaluation(1, 1.0, kind=1.0)
    recorder.close()
    assert [row["kind"] for row in lines(recorder.path)] == ["run", "end"]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    recorder = Recorder(tmp_path)
    recorder._file.close()
    recorder._file = Path("/dev/full").open("w")  # noqa: SIM115
    recorder.step(1, 0.5)
    with pytest.raises(OSError, match=r"run\.steps\.jsonl could not be written: .*space left"):
        recorder.close()
    assert recorder._file.closed
