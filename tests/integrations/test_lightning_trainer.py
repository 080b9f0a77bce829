"""Lightning's Trainer with our optimizer, beside the same Trainer with torch's, or beside a loop by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import (
    assert_close_weights,
    assert_same_run,
    assert_same_weights,
    small_batches,
    small_net,
)
from torch import Tensor, nn

import stackelberg_fused as sf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("lightning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
]
mse = nn.functional.mse_loss
BATCHES = 8


@pytest.fixture(scope="module")
def lightning() -> Any:
    """Imported by a test and not by the collection, which every process makes."""
    return pytest.importorskip("lightning")


def _module(lightning: Any, make: Any, alternating: bool = False) -> Any:
    """A LightningModule of a body and a head; `make` gives its optimizer."""

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.automatic_optimization = not alternating
            self.rates: list[list[float]] = []

        def training_step(self, batch: Any, _: int) -> Tensor | None:
            if self.automatic_optimization:
                return self._loss(batch)
            optimizer = self.optimizers()
            for role in ("head", "body"):
                optimizer.zero_grad()
                self.manual_backward(self._loss(batch))
                optimizer.step(role=role)
            return None

        def validation_step(self, batch: Any, _: int) -> None:
            self.log("loss", self._loss(batch))

        def _loss(self, batch: Any) -> Tensor:
            return mse(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return make(self.net)

    return Model()


def _trainer(lightning: Any, **more: Any) -> Any:
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger")
    given = {"max_epochs": 1, "accelerator": "cpu", **dict.fromkeys(quiet, False), **more}
    return lightning.Trainer(**given)


def _batches() -> Any:
    return torch.utils.data.DataLoader(small_batches(BATCHES), batch_size=None)


def _groups(net: nn.Module) -> list[dict[str, Any]]:
    rates = {"body": 1e-3, "head": 1e-2}
    return [{**g, "lr": rates[g["role"]]} for g in sf.split_body_head(net, head="2")]


def _of(kind: Any, **options: Any) -> Any:
    return lambda net: kind(_groups(net), **options)


def _fitted(lightning: Any, make: Any, **more: Any) -> tuple[Any, Any]:
    module = _module(lightning, make)
    trainer = _trainer(lightning, **more)
    trainer.fit(module, _batches())
    return module, trainer


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda more: "-".join(more) or "plain",
)
def test_automatic_as_with_torchs(lightning: Any, more: Any) -> None:
    def scheduled(kind: Any) -> Any:
        def make(net: nn.Module) -> Any:
            optimizer = kind(_groups(net), weight_decay=0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        return make

    ours, trainer = _fitted(lightning, scheduled(sf.StackelbergAdamW), **more)
    torchs, _ = _fitted(lightning, scheduled(torch.optim.AdamW), **more)
    assert trainer.global_step == BATCHES // more.get("accumulate_grad_batches", 1)
    assert_close_weights(ours, torchs)


def test_the_reference_as_torchs(lightning: Any) -> None:
    ours, _ = _fitted(lightning, _of(sf.StackelbergAdamW, backend="reference"))
    torchs, _ = _fitted(lightning, _of(torch.optim.AdamW))
    assert_close_weights(ours, torchs)


def test_max_grad_norm_clips_as_lightning(lightning: Any) -> None:
    ours, _ = _fitted(lightning, _of(sf.StackelbergAdamW, max_grad_norm=0.1))
    torchs, _ = _fitted(lightning, _of(torch.optim.AdamW), gradient_clip_val=0.1)
    assert_close_weights(ours, torchs)


def test_alternating_by_hand_counts_each_step(lightning: Any) -> None:
    """`max_steps` and `global_step` count two for a batch; the optimizer counts one for each parameter."""
    module = _module(lightning, _of(sf.StackelbergAdamW), alternating=True)
    trainer = _trainer(lightning, max_epochs=-1, max_steps=6)
    trainer.fit(module, _batches())
    assert trainer.global_step == 6

    net = small_net()
    by_hand = sf.StackelbergAdamW(_groups(net))
    for inputs, targets in small_batches()[:3]:
        for role in ("head", "body"):
            by_hand.zero_grad()
            mse(net(inputs), targets).backward()
            by_hand.step(role=role)
    assert_same_run(module.net, trainer.optimizers[0], net, by_hand)
    assert {float(state["step"]) for state in by_hand.state.values()} == {3.0}


def test_alternating_closure_counts_once(lightning: Any) -> None:
    """Automatic optimization passes a closure: `mode="alternating"` needs nothing else."""
    alternating = _of(sf.StackelbergAdamW, mode="alternating")
    module, trainer = _fitted(lightning, alternating)
    assert trainer.global_step == BATCHES
    net = small_net()
    by_hand = alternating(net)
    for inputs, targets in small_batches(BATCHES):

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            loss = mse(net(inputs), targets)
            loss.backward()
            return loss

        by_hand.step(closure)
    assert_same_weights(module.net, net)


def test_no_closure_under_a_gradient_scaler(lightning: Any) -> None:
    """Lightning evaluates the closure itself then, so that an alternating step has none: it says so."""
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    seen = []

    class Watched(sf.StackelbergAdamW):
        def step(self, closure: Any = None, **more: Any) -> Any:
            seen.append(closure)
            return super().step(closure, **more)

    for make, expected in (
        (_of(Watched), None),
        (_of(sf.StackelbergAdamW, mode="alternating"), "closure"),
    ):
        scaled = plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        trainer = _trainer(lightning, plugins=[scaled], max_steps=1)
        if expected is None:
            trainer.fit(_module(lightning, make), _batches())
            continue
        with pytest.raises((RuntimeError, ValueError, TypeError), match=expected):
            trainer.fit(_module(lightning, make), _batches())
    assert seen == [None]


def test_alternating_by_hand_under_a_gradient_scaler(lightning: Any) -> None:
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # nothing overflows, so no step is skipped
    scaled = plugins.MixedPrecision("16-mixed", "cpu", scaler)
    module = _module(lightning, _of(sf.StackelbergAdamW), alternating=True)
    trainer = _trainer(lightning, plugins=[scaled])
    trainer.fit(module, _batches())
    state = trainer.optimizers[0].state
    assert {float(state[p]["step"]) for p in module.parameters()} == {BATCHES}


def test_resumed_as_uninterrupted(lightning: Any, tmp_path: Path) -> None:
    make = _of(sf.StackelbergAdamW, ema_decay=0.9, weight_decay=0.1)
    whole, trainer = _fitted(lightning, make, max_epochs=2)
    _, first = _fitted(lightning, make)
    first.save_checkpoint(tmp_path / "first.ckpt")
    module = _module(lightning, make)
    again = _trainer(lightning, max_epochs=2)
    again.fit(module, _batches(), ckpt_path=tmp_path / "first.ckpt")
    assert again.global_step == 2 * BATCHES
    assert_same_run(module.net, again.optimizers[0], whole.net, trainer.optimizers[0])


def test_validation_with_averaged_weights(lightning: Any) -> None:
    module, trainer = _fitted(lightning, _of(sf.StackelbergAdamW, ema_decay=0.9))
    optimizer = trainer.optimizers[0]
    averages = {name: optimizer.state[p]["ema"].clone() for name, p in module.named_parameters()}

    def validated(model: Any) -> float:
        return _trainer(lightning).validate(model, _batches(), verbose=False)[0]["loss"]

    last = validated(module)
    with optimizer.ema_weights():
        averaged = validated(module)
    assert validated(module) == last != averaged
    by_hand = _module(lightning, None)
    by_hand.load_state_dict(averages)
    assert validated(by_hand) == averaged
