"""The callbacks in Lightning's own Trainer: automatic and manual optimization, checkpoints, loggers."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import small_batches
from small_lightning import quiet_trainer, small_module
from snippets import snippet_under
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stackelberg_fused as sf
from stackelberg_fused.layout.statistics import LastStep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("lightning"),
    pytest.mark.usefixtures("lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def callbacks(lightning: Any) -> Any:
    return import_module("stackelberg_fused.integrations.lightning")


def _scheduled(ema_decay: float | None = 0.9) -> Any:
    def make(net: nn.Module) -> Any:
        groups = sf.split_body_head(net, head="2")
        limits = {"head": 1.0}
        optimizer = sf.StackelbergAdamW(groups, lr=1e-2, ema_decay=ema_decay, max_grad_norm=limits)
        scheduler = sf.scale_schedule(optimizer, lambda k: 0.9**k)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    return make


def _model(alternating: bool = False, ema_decay: float | None = 0.9) -> Any:
    return small_module(_scheduled(ema_decay), alternating)


def _loader() -> DataLoader[Any]:
    inputs, targets = small_batches(1, 24)[0]
    return DataLoader(TensorDataset(inputs, targets), batch_size=4)


def _trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    given = {"max_epochs": 2, "enable_checkpointing": None, **options}
    return quiet_trainer(default_root_dir=folder, callbacks=[*callbacks], **given)


def _saving(folder: Path) -> Any:
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(dirpath=folder, monitor="val", save_top_k=-1, filename="{epoch}")


@pytest.mark.parametrize("alternating", [False, True])
def test_validated_with_the_averages_and_saved(
    tmp_path: Path, alternating: bool, callbacks: Any
) -> None:
    model = _model(alternating)
    saving = _saving(tmp_path)
    trainer = _trainer(tmp_path, saving, callbacks.AveragedWeights())
    trainer.fit(model, _loader(), _loader())
    assert model.validated == [True] * 12
    optimizer = trainer.optimizers[0]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    with optimizer.ema_weights():
        inside = {name: p.detach().clone() for name, p in model.named_parameters()}
        assert float(model.loss(_loader().dataset.tensors)) == pytest.approx(
            float(trainer.callback_metrics["val"]), rel=1e-5
        )
    for name, weight in weights.items():
        assert torch.equal(saved["state_dict"][name], weight)
        assert torch.equal(saved["averaged_state_dict"][name], inside[name])
        assert not torch.equal(weight, inside[name])


def test_resumed(tmp_path: Path, callbacks: Any) -> None:
    whole, again = _model(), _model()
    _trainer(
        tmp_path, _saving(tmp_path), callbacks.AveragedWeights(), callbacks.OptimizerLog(2)
    ).fit(whole, _loader(), _loader())
    resumed = _trainer(
        tmp_path, callbacks.AveragedWeights(), callbacks.OptimizerLog(2), enable_checkpointing=False
    )
    resumed.fit(again, _loader(), _loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_validation_by_itself_takes_the_weights_that_it_is_given(
    tmp_path: Path, callbacks: Any
) -> None:
    model = _model()
    trainer = _trainer(tmp_path, callbacks.AveragedWeights(), enable_checkpointing=False)
    trainer.fit(model, _loader(), _loader())
    model.validated.clear()
    trainer.validate(model, _loader(), verbose=False)
    assert model.validated == [False] * 6


def test_an_error_in_validation_gives_the_weights_back(tmp_path: Path, callbacks: Any) -> None:
    model = _model()
    model.fails_in_validation = True
    trainer = _trainer(tmp_path, callbacks.AveragedWeights(), enable_checkpointing=False)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model, _loader(), _loader())
    assert not trainer.optimizers[0]._shared.is_swapped


def test_without_averages_training_does_not_begin(tmp_path: Path, callbacks: Any) -> None:
    trainer = _trainer(tmp_path, callbacks.AveragedWeights(), enable_checkpointing=False)
    with pytest.raises(ValueError, match="no optimizer of this library with an ema_decay"):
        trainer.fit(_model(ema_decay=None), _loader(), _loader())


def test_the_documented_way(tmp_path: Path, lightning: Any) -> None:
    names = {"Trainer": lightning.Trainer, "module": _model(), "train": _loader()}
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    exec(snippet_under("Lightning"), {**names, "held_out": _loader(), "logger": logger})
    assert names["module"].validated == [True] * 12


def _notes() -> Any:
    """A logger that keeps what it is told."""
    from lightning.pytorch.loggers.logger import Logger

    class Notes(Logger):
        name, version = "notes", 0

        def __init__(self) -> None:
            self.rows: list[tuple[int, dict[str, float]]] = []

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.rows.append((step or 0, dict(metrics)))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Notes()


@pytest.mark.parametrize("alternating", [False, True])
def test_logged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    alternating: bool,
    callbacks: Any,
    lightning: Any,
) -> None:
    """Every 4 of Lightning's steps, of which an alternating batch takes two."""
    reads: list[int] = []
    as_dict = LastStep.as_dict
    monkeypatch.setattr(LastStep, "as_dict", lambda self: reads.append(1) or as_dict(self))
    notes = _notes()
    log = callbacks.OptimizerLog(every=4, gap=lambda: 0.5)
    trainer = _trainer(
        tmp_path,
        log,
        logger=[notes, lightning.pytorch.loggers.CSVLogger(tmp_path)],
        max_epochs=1,
        enable_checkpointing=False,
    )
    trainer.fit(_model(alternating), _loader())
    rows = [(step, row) for step, row in notes.rows if "optimizer/lr/head" in row]
    assert [step for step, _ in rows] == ([4, 8, 12] if alternating else [4])
    assert len(reads) == len(rows)  # nothing is read in other steps, nor once per logger
    for _, row in rows:
        assert row["optimizer/lr/head"] == pytest.approx(10 * row["optimizer/lr/body"])
        assert {"optimizer/grad_norm/body", "optimizer/clip_factor/body"} <= row.keys()
        # the last update of an alternating batch is the body's: the head rested in it
        assert ("optimizer/clip_factor/head" in row) == (not alternating)
        assert row["optimizer/follower_gap"] == 0.5


def test_without_a_logger_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, callbacks: Any
) -> None:
    monkeypatch.setattr(LastStep, "as_dict", lambda self: pytest.fail("was read"))
    trainer = _trainer(tmp_path, callbacks.OptimizerLog(every=1), enable_checkpointing=False)
    trainer.fit(_model(), _loader())
