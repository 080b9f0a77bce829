"""The callbacks in Lightning's own Trainer: automatic and manual optimization, checkpoints, loggers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from snippets import snippet_under
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stackelberg_fused as sf
from stackelberg_fused.layout.statistics import LastStep

pytest.importorskip("lightning.pytorch")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger

from stackelberg_fused.integrations.lightning import AveragedWeights, OptimizerLog

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Model(pl.LightningModule):
    """A body and a head; alternating steps are manual ones."""

    def __init__(self, alternating: bool = False, ema_decay: float | None = 0.9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(4, 3), nn.Linear(3, 1)
        self.automatic_optimization = not alternating
        self.ema_decay = ema_decay
        self.fails_in_validation = False
        self.validated: list[bool] = []

    def _loss(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        return (self.head(self.body(inputs).tanh()) - targets).square().mean()

    def training_step(self, batch: Any, _: int) -> Any:
        if self.automatic_optimization:
            return self._loss(batch)
        optimizer = self.optimizers()
        for role in ("head", "body"):
            optimizer.zero_grad()
            self.manual_backward(self._loss(batch))
            optimizer.step(role=role)
        return None

    def validation_step(self, batch: Any, _: int) -> None:
        if self.fails_in_validation and not self.trainer.sanity_checking:
            raise ZeroDivisionError
        if not self.trainer.sanity_checking:
            self.validated.append(self.trainer.optimizers[0]._shared.is_swapped)
        self.log("val", self._loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = sf.StackelbergAdamW(
            sf.split_body_head(self, head="head"),
            lr=1e-2,
            ema_decay=self.ema_decay,
            max_grad_norm={"head": 1.0},
        )
        scheduler = sf.scale_schedule(optimizer, lambda k: 0.9**k)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def _loader() -> DataLoader[Any]:
    inputs = torch.randn(24, 4, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=4)


def _trainer(folder: Path, *callbacks: Any, **options: Any) -> Any:
    given = {"max_epochs": 2, "logger": False, "accelerator": "cpu"}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        default_root_dir=folder, callbacks=[*callbacks], **{**given, **quiet, **options}
    )


def _saving(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, monitor="val", save_top_k=-1, filename="{epoch}")


@pytest.mark.parametrize("alternating", [False, True])
def test_validated_with_the_averages_and_saved(tmp_path: Path, alternating: bool) -> None:
    model = Model(alternating)
    saving = _saving(tmp_path)
    trainer = _trainer(tmp_path, saving, AveragedWeights())
    trainer.fit(model, _loader(), _loader())
    assert model.validated == [True] * 12
    optimizer = trainer.optimizers[0]
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    with optimizer.ema_weights():
        inside = {name: p.detach().clone() for name, p in model.named_parameters()}
        assert float(model._loss(_loader().dataset.tensors)) == pytest.approx(
            float(trainer.callback_metrics["val"]), rel=1e-5
        )
    for name, weight in weights.items():
        assert torch.equal(saved["state_dict"][name], weight)
        assert torch.equal(saved["averaged_state_dict"][name], inside[name])
        assert not torch.equal(weight, inside[name])


def test_resumed(tmp_path: Path) -> None:
    whole, again = Model(), Model()
    _trainer(tmp_path, _saving(tmp_path), AveragedWeights(), OptimizerLog(2)).fit(
        whole, _loader(), _loader()
    )
    resumed = _trainer(tmp_path, AveragedWeights(), OptimizerLog(2), enable_checkpointing=False)
    resumed.fit(again, _loader(), _loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_validation_by_itself_takes_the_weights_that_it_is_given(tmp_path: Path) -> None:
    model = Model()
    trainer = _trainer(tmp_path, AveragedWeights(), enable_checkpointing=False)
    trainer.fit(model, _loader(), _loader())
    model.validated.clear()
    trainer.validate(model, _loader(), verbose=False)
    assert model.validated == [False] * 6


def test_an_error_in_validation_gives_the_weights_back(tmp_path: Path) -> None:
    model = Model()
    model.fails_in_validation = True
    trainer = _trainer(tmp_path, AveragedWeights(), enable_checkpointing=False)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model, _loader(), _loader())
    assert not trainer.optimizers[0]._shared.is_swapped


def test_without_averages_training_does_not_begin(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, AveragedWeights(), enable_checkpointing=False)
    with pytest.raises(ValueError, match="no optimizer of this library with an ema_decay"):
        trainer.fit(Model(ema_decay=None), _loader(), _loader())


def test_the_documented_way(tmp_path: Path) -> None:
    names = {"Trainer": pl.Trainer, "module": Model(), "train": _loader(), "held_out": _loader()}
    exec(snippet_under("Lightning"), {**names, "logger": CSVLogger(tmp_path)})
    assert names["module"].validated == [True] * 12


class Notes(Logger):
    """Keeps what it is told."""

    name, version = "notes", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@pytest.mark.parametrize("alternating", [False, True])
def test_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alternating: bool) -> None:
    """Every 4 of Lightning's steps, of which an alternating batch takes two."""
    reads: list[int] = []
    as_dict = LastStep.as_dict
    monkeypatch.setattr(LastStep, "as_dict", lambda self: reads.append(1) or as_dict(self))
    notes = Notes()
    log = OptimizerLog(every=4, gap=lambda: 0.5)
    trainer = _trainer(
        tmp_path,
        log,
        logger=[notes, CSVLogger(tmp_path)],
        max_epochs=1,
        enable_checkpointing=False,
    )
    trainer.fit(Model(alternating), _loader())
    rows = [(step, row) for step, row in notes.rows if "optimizer/lr/head" in row]
    assert [step for step, _ in rows] == ([4, 8, 12] if alternating else [4])
    assert len(reads) == len(rows)  # nothing is read in other steps, nor once per logger
    for _, row in rows:
        assert row["optimizer/lr/head"] == pytest.approx(10 * row["optimizer/lr/body"])
        assert {"optimizer/grad_norm/body", "optimizer/clip_factor/body"} <= row.keys()
        # the last update of an alternating batch is the body's: the head rested in it
        assert ("optimizer/clip_factor/head" in row) == (not alternating)
        assert row["optimizer/follower_gap"] == 0.5


def test_without_a_logger_nothing_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LastStep, "as_dict", lambda self: pytest.fail("was read"))
    trainer = _trainer(tmp_path, OptimizerLog(every=1), enable_checkpointing=False)
    trainer.fit(Model(), _loader())
