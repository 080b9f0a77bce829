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
from small_lightning import groups_of, mse, of, quiet_trainer, small_module
from torch import Tensor, nn

import stackelberg_fused as sf

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("lightning"),
    pytest.mark.usefixtures("lightning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
]
BATCHES = 8


def _batches() -> Any:
    return torch.utils.data.DataLoader(small_batches(BATCHES), batch_size=None)


def _fitted(make: Any, **more: Any) -> tuple[Any, Any]:
    module = small_module(make)
    trainer = quiet_trainer(**more)
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
def test_automatic_as_with_torchs(more: Any) -> None:
    def scheduled(kind: Any) -> Any:
        def make(net: nn.Module) -> Any:
            optimizer = kind(groups_of(net), weight_decay=0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        return make

    ours, trainer = _fitted(scheduled(sf.StackelbergAdamW), **more)
    torchs, _ = _fitted(scheduled(torch.optim.AdamW), **more)
    assert trainer.global_step == BATCHES // more.get("accumulate_grad_batches", 1)
    assert_close_weights(ours, torchs)


def test_the_reference_as_torchs() -> None:
    ours, _ = _fitted(of(sf.StackelbergAdamW, backend="reference"))
    torchs, _ = _fitted(of(torch.optim.AdamW))
    assert_close_weights(ours, torchs)


def test_max_grad_norm_clips_as_lightning() -> None:
    ours, _ = _fitted(of(sf.StackelbergAdamW, max_grad_norm=0.1))
    torchs, _ = _fitted(of(torch.optim.AdamW), gradient_clip_val=0.1)
    assert_close_weights(ours, torchs)


def test_alternating_by_hand_counts_each_step() -> None:
    """`max_steps` and `global_step` count two for a batch; the optimizer counts one for each parameter."""
    module = small_module(of(sf.StackelbergAdamW), alternating=True)
    trainer = quiet_trainer(max_epochs=-1, max_steps=6)
    trainer.fit(module, _batches())
    assert trainer.global_step == 6

    net = small_net()
    by_hand = sf.StackelbergAdamW(groups_of(net))
    for inputs, targets in small_batches()[:3]:
        for role in ("head", "body"):
            by_hand.zero_grad()
            mse(net(inputs), targets).backward()
            by_hand.step(role=role)
    assert_same_run(module.net, trainer.optimizers[0], net, by_hand)
    assert {float(state["step"]) for state in by_hand.state.values()} == {3.0}


def test_alternating_closure_counts_once() -> None:
    """Automatic optimization passes a closure: `mode="alternating"` needs nothing else."""
    alternating = of(sf.StackelbergAdamW, mode="alternating")
    module, trainer = _fitted(alternating)
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


def test_no_closure_under_a_gradient_scaler() -> None:
    """Lightning evaluates the closure itself then, so that an alternating step has none: it says so."""
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    seen = []

    class Watched(sf.StackelbergAdamW):
        def step(self, closure: Any = None, **more: Any) -> Any:
            seen.append(closure)
            return super().step(closure, **more)

    for make, expected in (
        (of(Watched), None),
        (of(sf.StackelbergAdamW, mode="alternating"), "closure"),
    ):
        scaled = plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
        trainer = quiet_trainer(plugins=[scaled], max_steps=1)
        if expected is None:
            trainer.fit(small_module(make), _batches())
            continue
        with pytest.raises((RuntimeError, ValueError, TypeError), match=expected):
            trainer.fit(small_module(make), _batches())
    assert seen == [None]


def test_alternating_by_hand_under_a_gradient_scaler() -> None:
    plugins = pytest.importorskip("lightning.pytorch.plugins.precision")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # nothing overflows, so no step is skipped
    scaled = plugins.MixedPrecision("16-mixed", "cpu", scaler)
    module = small_module(of(sf.StackelbergAdamW), alternating=True)
    trainer = quiet_trainer(plugins=[scaled])
    trainer.fit(module, _batches())
    state = trainer.optimizers[0].state
    assert {float(state[p]["step"]) for p in module.parameters()} == {BATCHES}


def test_resumed_as_uninterrupted(tmp_path: Path) -> None:
    make = of(sf.StackelbergAdamW, ema_decay=0.9, weight_decay=0.1)
    whole, trainer = _fitted(make, max_epochs=2)
    _, first = _fitted(make)
    first.save_checkpoint(tmp_path / "first.ckpt")
    module = small_module(make)
    again = quiet_trainer(max_epochs=2)
    again.fit(module, _batches(), ckpt_path=tmp_path / "first.ckpt")
    assert again.global_step == 2 * BATCHES
    assert_same_run(module.net, again.optimizers[0], whole.net, trainer.optimizers[0])


def test_validation_with_averaged_weights() -> None:
    module, trainer = _fitted(of(sf.StackelbergAdamW, ema_decay=0.9))
    optimizer = trainer.optimizers[0]
    averages = {name: optimizer.state[p]["ema"].clone() for name, p in module.named_parameters()}

    def validated(model: Any) -> float:
        return quiet_trainer().validate(model, _batches(), verbose=False)[0]["val"]

    last = validated(module)
    with optimizer.ema_weights():
        averaged = validated(module)
    assert validated(module) == last != averaged
    by_hand = small_module(None)
    by_hand.load_state_dict(averages)
    assert validated(by_hand) == averaged
