"""Transformers' Trainer with our optimizer, beside the same Trainer with torch's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import assert_close_weights, assert_same_run
from small_bert import Words, small_bert
from torch import nn

import stackelberg_fused as sf

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("transformers")]
STEPS = 6
OPTIONS = {"lr": 1e-3, "weight_decay": 0.1}


def _trainer(transformers: Any, model: Any, folder: Path, given: Any, **more: Any) -> Any:
    settings = {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "warmup_steps": 2, "use_cpu": True,
        "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        "logging_strategy": "no",
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **{**settings, **more})
    return transformers.Trainer(model, arguments, train_dataset=Words(), **given)


def _trained(
    transformers: Any, folder: Path, kind: Any, how: str, options: dict[str, Any], more: Any
) -> Any:
    model = small_bert()
    if how == "optimizers":
        given = {"optimizers": (kind(model.parameters(), **options), None)}
    elif how == "cls":
        given = {"optimizer_cls_and_kwargs": (kind, dict(options))}
    else:
        groups = sf.layerwise_lr_decay(model, 0.5, lr=options["lr"])
        given = {"optimizer_cls_and_kwargs": (kind, {**options, "params": groups})}
    trainer = _trainer(transformers, model, folder, given, **more)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "how, more",
    [
        ("optimizers", {}),
        ("optimizers", {"gradient_accumulation_steps": 2}),
        ("optimizers", {"bf16": True}),
        ("optimizers", {"max_grad_norm": 0.1}),
        ("cls", {}),
        ("params", {"gradient_accumulation_steps": 2}),
    ],
)
def test_as_with_torchs(transformers: Any, tmp_path: Path, how: str, more: Any) -> None:
    ours, torchs = (
        _trained(transformers, tmp_path, kind, how, OPTIONS, more)
        for kind in (sf.StackelbergAdamW, torch.optim.AdamW)
    )
    assert ours.state.global_step == STEPS
    assert isinstance(ours.optimizer.optimizer, sf.StackelbergAdamW)
    assert_close_weights(ours.model, torchs.model)
    if how == "params":  # head, two blocks, embeddings
        rates = {group["initial_lr"] for group in ours.optimizer.param_groups}
        assert rates == {1e-3, 5e-4, 2.5e-4, 1.25e-4}


def test_the_reference_as_torchs(transformers: Any, tmp_path: Path) -> None:
    kinds = (partial(sf.StackelbergAdamW, backend="reference"), torch.optim.AdamW)
    ours, torchs = (
        _trained(transformers, tmp_path, kind, "optimizers", OPTIONS, {}).model for kind in kinds
    )
    assert_close_weights(ours, torchs)


def test_rates_and_decay_that_the_trainer_does_not_hand_on(
    transformers: Any, tmp_path: Path
) -> None:
    """Its own learning rate reaches no optimizer given by class; its own decay goes before that of the arguments."""
    more = {"max_steps": 1, "learning_rate": 0.5, "weight_decay": 0.2}
    for kind in (sf.StackelbergAdamW, torch.optim.AdamW):
        trainer = _trained(transformers, tmp_path, kind, "cls", OPTIONS, more)
        groups = trainer.optimizer.param_groups
        assert {group["initial_lr"] for group in groups} == {1e-3}
        assert [group["weight_decay"] for group in groups] == [0.2, 0.0]


def test_resumed_as_uninterrupted(transformers: Any, tmp_path: Path) -> None:
    def make(folder: Path) -> Any:
        model = small_bert()
        groups = sf.split_body_head(model, head="classifier")
        optimizer = sf.StackelbergAdamW(groups, **OPTIONS, head_lr_ratio=5.0, ema_decay=0.9)
        how = {"save_strategy": "steps", "save_steps": 3}
        return _trainer(transformers, model, folder, {"optimizers": (optimizer, None)}, **how)

    whole = make(tmp_path)
    whole.train()
    resumed = make(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == STEPS
    inner = (trainer.optimizer.optimizer for trainer in (resumed, whole))
    assert_same_run(resumed.model, next(inner), whole.model, next(inner))
    assert "ema" in whole.optimizer.state[whole.model.classifier.weight]


def test_evaluation_with_averaged_weights(transformers: Any, tmp_path: Path) -> None:
    options = {**OPTIONS, "ema_decay": 0.5}
    trainer = _trained(transformers, tmp_path, sf.StackelbergAdamW, "optimizers", options, {})
    optimizer = trainer.optimizer.optimizer
    last = trainer.evaluate(Words())["eval_loss"]
    with optimizer.ema_weights():
        averaged = trainer.evaluate(Words())["eval_loss"]
    assert trainer.evaluate(Words())["eval_loss"] == last != averaged
    by_hand = small_bert()
    averages = {n: optimizer.state[p]["ema"] for n, p in trainer.model.named_parameters()}
    by_hand.load_state_dict(averages, strict=False)
    again = _trainer(transformers, by_hand, tmp_path, {}).evaluate(Words())["eval_loss"]
    assert again == averaged


def test_the_rate_of_each_group_follows_one_schedule(transformers: Any, tmp_path: Path) -> None:
    """The Trainer's scheduler multiplies: a ratio stays."""
    model = small_bert()
    groups = sf.split_body_head(model, head="classifier")
    optimizer = sf.StackelbergAdamW(groups, lr=1e-3, head_lr_ratio=10.0)
    trainer = _trainer(
        transformers, model, tmp_path, {"optimizers": (optimizer, None)}, max_steps=3
    )
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            seen.append([group["lr"] for group in optimizer.param_groups])

    trainer.add_callback(Watch())
    trainer.train()
    assert seen[0] == [0.0, 0.0]  # a warm-up begins at a rate of 0
    assert [head / body for body, head in seen[1:]] == pytest.approx([10.0, 10.0])


class Named(nn.Module):
    """Parameters that the Trainer, which looks at names, takes for matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.ln = nn.Embedding(4, 3), nn.GroupNorm(1, 3)
        self.dense, self.LayerNorm = nn.Linear(3, 3), nn.LayerNorm(3)


def test_decay_goes_by_name_there_and_by_module_here(transformers: Any, tmp_path: Path) -> None:
    model = Named()
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    assert decayed == {"embed.weight", "ln.weight", "dense.weight"}
    names = {param: name for name, param in model.named_parameters()}
    by_module = sf.decay_by_module(model, 0.1)
    ours = {
        name if isinstance(name, str) else names[name]
        for group in by_module
        if group.get("weight_decay")
        for name, *_ in group["params"]
    }
    assert ours == {"dense.weight"}


def test_groups_in_kwargs_are_taken_out_of_them(transformers: Any, tmp_path: Path) -> None:
    """Trainer pops "params" from the dict that it was given: a second Trainer needs a dict of its own."""
    model = small_bert()
    kwargs = {"params": sf.kinds(model), "lr": 1e-3}
    given = {"optimizer_cls_and_kwargs": (sf.StackelbergAdamW, kwargs)}
    _trainer(transformers, model, tmp_path, given).train()
    assert kwargs == {"lr": 1e-3}
