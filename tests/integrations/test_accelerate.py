"""Accelerate with our optimizer, beside the same loop with torch's."""

from __future__ import annotations

import copy
from functools import partial
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
from torch import nn

import stackelberg_fused as sf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("transformers")]
mse = nn.functional.mse_loss


@pytest.fixture
def accelerator() -> Any:
    """One on the CPU, that accumulates two batches."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """With a rate for each, as torch's optimizers need it."""
    rates = {"body": 1e-3, "head": 1e-2}
    return [{**g, "lr": rates[g["role"]]} for g in sf.split_body_head(model, head="2")]


def _train(accelerator: Any, model: Any, optimizer: Any, schedule: Any, batches: Any) -> None:
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            accelerator.backward(mse(model(inputs), targets))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_as_with_torchs(accelerator: Any, backend: str) -> None:
    """Accumulated, clipped, scheduled; a prepared optimizer was loaded with its own state dict."""
    trained = []
    for kind in (partial(sf.StackelbergAdamW, backend=backend), torch.optim.AdamW):
        model = small_net()
        optimizer = kind(_groups(model), weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
        _train(accelerator, model, optimizer, schedule, small_batches())
        trained.append((model, optimizer))
    (ours, opt), (torchs, other) = trained
    assert_close_weights(ours, torchs)
    assert [g["lr"] for g in opt.param_groups] == [g["lr"] for g in other.param_groups]
    assert opt.state[ours[0].weight]["step"] == 4


def test_saved_and_loaded_as_uninterrupted(accelerator: Any, tmp_path: Path) -> None:
    def prepared() -> Any:
        model = small_net()
        optimizer = sf.StackelbergAdamW(_groups(model), ema_decay=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        accelerator.free_memory()
        return accelerator.prepare(model, optimizer, schedule)

    batches = small_batches()
    model, optimizer, schedule = prepared()
    _train(accelerator, model, optimizer, schedule, batches[:4])
    accelerator.save_state(str(tmp_path))
    _train(accelerator, model, optimizer, schedule, batches[4:])

    loaded, again, schedule = prepared()
    accelerator.load_state(str(tmp_path))
    _train(accelerator, loaded, again, schedule, batches[4:])
    assert_same_run(loaded, again, model, optimizer)


def test_alternating_steps_need_the_optimizer_inside(accelerator: Any) -> None:
    """The wrapper takes neither keywords nor our methods."""
    by_hand = small_net()
    other = sf.StackelbergAdamW(_groups(by_hand))
    model = small_net()
    model, wrapped = accelerator.prepare(model, sf.StackelbergAdamW(_groups(model)))
    with pytest.raises(TypeError, match="unexpected keyword argument 'role'"):
        wrapped.step(role="head")
    for name in ("player", "ema_weights", "last_step"):
        assert not hasattr(wrapped, name)
    for inputs, targets in small_batches(3):
        sf.alternating_step(by_hand[:2], by_hand[2], mse, other, inputs, targets)
        sf.alternating_step(model[:2], model[2], mse, wrapped.optimizer, inputs, targets)
    assert_same_run(model, wrapped, by_hand, other)


def test_alternating_closure_through_the_wrapper(accelerator: Any) -> None:
    """A closure is handed on: `mode="alternating"` needs nothing else."""
    before = small_net()
    model = copy.deepcopy(before)
    optimizer = sf.StackelbergAdamW(_groups(model), mode="alternating")
    model, wrapped = accelerator.prepare(model, optimizer)
    other = sf.StackelbergAdamW(_groups(before), mode="alternating")
    for inputs, targets in small_batches(3):

        def closure(inputs: Any = inputs, targets: Any = targets) -> Any:
            loss = mse(model(inputs), targets)
            accelerator.backward(loss * accelerator.gradient_accumulation_steps)
            return loss

        def plain(inputs: Any = inputs, targets: Any = targets) -> Any:
            loss = mse(before(inputs), targets)
            loss.backward()
            return loss

        wrapped.step(closure)
        other.step(plain)
    assert_same_weights(model, before)


def test_a_step_between_two_accumulated_batches_is_not_taken(accelerator: Any) -> None:
    """Accelerate leaves it out; what goes to the optimizer inside is taken."""
    model = small_net()
    model, wrapped = accelerator.prepare(model, sf.StackelbergAdamW(_groups(model)))
    inputs, targets = small_batches(1)[0]
    with accelerator.accumulate(model):
        accelerator.backward(mse(model(inputs), targets))
        wrapped.step()
        assert not wrapped.state
        wrapped.optimizer.step(role="head")
    assert wrapped.state[model[2].weight]["step"] == 1
