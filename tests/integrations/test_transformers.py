"""The callbacks in transformers' own Trainer, with a tiny model from a config."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from small_bert import Words, small_bert
from snippets import snippet_under

import stackelberg_fused as sf
from stackelberg_fused.layout.statistics import LastStep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("transformers"),
    pytest.mark.usefixtures("transformers"),
]


@pytest.fixture(scope="module")
def callbacks(transformers: Any) -> Any:
    return import_module("stackelberg_fused.integrations.transformers")


def _data(count: int) -> Words:
    return Words(count, first=1000 * count)


def _trainer(folder: Path, ema_decay: float | None = 0.9, data: Any = None, **options: Any) -> Any:
    import transformers

    model = small_bert(layers=1)
    optimizer = sf.StackelbergAdamW(
        sf.split_body_head(model, head="classifier"),
        lr=1e-2,
        ema_decay=ema_decay,
        max_grad_norm={"body": 0.5, "head": float("inf")},
    )
    given = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no"}
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **{**given, **options},
    )
    return transformers.Trainer(
        model,
        args,
        train_dataset=_data(24),
        eval_dataset=_data(8) if data is None else data,
        optimizers=(optimizer, sf.scale_schedule(optimizer, sf.warmup_linear(10, warmup=2))),
    )


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def _loss(model: Any, data: Words) -> float:
    with torch.no_grad():
        return float(model.eval()(**data.batch()).loss)


def _looking(optimizer: Any) -> Any:
    """Notes whether the weights of evaluations were the averages, and those of every other event were not."""
    from transformers import TrainerCallback

    class Looking(TrainerCallback):
        def __init__(self) -> None:
            self.seen: list[bool] = []

        def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.seen.append(optimizer._shared.is_swapped)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert not optimizer._shared.is_swapped

        on_step_end = on_save = on_step_begin

    return Looking()


@pytest.mark.parametrize("several", [False, True])
def test_evaluated_with_the_averages(tmp_path: Path, several: bool, callbacks: Any) -> None:
    data = {"one": _data(8), "two": _data(12)} if several else _data(8)
    trainer = _trainer(tmp_path, data=data)
    looking = _looking(trainer.optimizer)
    trainer.add_callback(looking)
    callback = callbacks.AveragedWeights(trainer)
    trainer.add_callback(callback)
    trainer.train()
    assert looking.seen
    assert all(looking.seen)
    names = ["eval_one_loss", "eval_two_loss"] if several else ["eval_loss"]
    last = {k: v for row in trainer.state.log_history if row["step"] == 6 for k, v in row.items()}
    weights = _weights(trainer)
    with callback.averages():
        assert any(not torch.equal(weights[n], p) for n, p in trainer.model.named_parameters())
        for name, rows in zip(names, data.values() if several else [data], strict=True):
            assert last[name] == pytest.approx(_loss(trainer.model, rows), rel=1e-4)
        inside = _loss(trainer.model, _data(8))
    assert all(torch.equal(weights[n], p) for n, p in trainer.model.named_parameters())
    assert inside != _loss(trainer.model, _data(8))


def test_it_changes_no_training(tmp_path: Path, callbacks: Any) -> None:
    plain, averaged = _trainer(tmp_path / "a"), _trainer(tmp_path / "b")
    averaged.add_callback(callbacks.AveragedWeights(averaged))
    averaged.add_callback(callbacks.OptimizerLog(averaged, every=2))
    for trainer in (plain, averaged):
        trainer.train()
    expected = _weights(plain)
    assert all(torch.equal(expected[n], p) for n, p in _weights(averaged).items())


def test_saved_beside_the_weights_and_resumed(tmp_path: Path, callbacks: Any) -> None:
    """A run that goes on from a checkpoint ends with the bits of one that was not interrupted."""
    whole = _trainer(tmp_path / "whole")
    whole.add_callback(callbacks.AveragedWeights(whole))
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    first = _trainer(tmp_path / "parts", **saving)
    first.add_callback(callbacks.AveragedWeights(first))
    first.train()
    checkpoint = tmp_path / "parts" / "checkpoint-3"
    stored = type(first.model).from_pretrained(checkpoint / "averaged")
    loss = next(row["eval_loss"] for row in first.state.log_history if row.get("step") == 3)
    assert _loss(stored, _data(8)) == pytest.approx(loss, rel=1e-4)
    again = _trainer(tmp_path / "parts", **saving)
    again.add_callback(callbacks.AveragedWeights(again))
    again.train(resume_from_checkpoint=str(checkpoint))
    expected = _weights(whole)
    assert all(torch.equal(expected[n], p) for n, p in _weights(again).items())


def test_the_best_model_is_the_one_that_was_judged(tmp_path: Path, callbacks: Any) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    trainer = _trainer(tmp_path, load_best_model_at_end=True, **options)
    trainer.add_callback(callbacks.AveragedWeights(trainer))
    trainer.train()
    best = trainer.state.best_metric
    assert _loss(trainer.model, _data(8)) == pytest.approx(best, rel=1e-4)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best, rel=1e-4)
    assert not trainer.state.best_model_checkpoint.endswith("averaged")


def test_without_averages_training_does_not_begin(tmp_path: Path, callbacks: Any) -> None:
    trainer = _trainer(tmp_path, ema_decay=None)
    trainer.add_callback(callbacks.AveragedWeights(trainer))
    with pytest.raises(ValueError, match="no optimizer of this library with an ema_decay"):
        trainer.train()


def test_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callbacks: Any) -> None:
    reads: list[int] = []
    as_dict = LastStep.as_dict
    monkeypatch.setattr(LastStep, "as_dict", lambda self: reads.append(1) or as_dict(self))
    trainer = _trainer(tmp_path, logging_steps=1)
    trainer.add_callback(callbacks.OptimizerLog(trainer, every=2, gap=lambda: 0.5))
    trainer.train()
    rows = [row for row in trainer.state.log_history if "optimizer/lr/head" in row]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert len(reads) == 3  # nothing is read in other steps
    keys = {*(f"optimizer/grad_norm/{of}" for of in ("body", "head", "total"))}
    keys |= {"optimizer/clip_factor/body", "optimizer/lr/body", "optimizer/follower_gap"}
    for row in rows:
        assert keys <= row.keys()
        assert row["optimizer/lr/head"] == pytest.approx(10 * row["optimizer/lr/body"])
        assert row["optimizer/clip_factor/head"] == 1.0


def test_the_documented_way(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path)
    names = {"sf": sf, "Trainer": type(trainer), "model": trainer.model, "args": trainer.args}
    exec(snippet_under("Trainer"), {**names, "train": _data(24), "held_out": _data(8)})
    assert (tmp_path / "model.safetensors").exists()


def test_an_interval_that_is_none(callbacks: Any) -> None:
    with pytest.raises(ValueError, match="every must be"):
        callbacks.OptimizerLog(None, every=0)
