"""Transformers' Trainer in two processes, under DDP: ours beside torch's, and resumed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from beside_torch import assert_same_run
from launched import launched
from ranks import Ranks, of_ranks
from small_bert import Words, small_bert
from tolerances import IN_TRAINERS
from torch import Tensor, nn

import stackelberg_fused as sf

pytestmark = [
    *of_ranks,
    pytest.mark.skipif(
        not (importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate")),
        reason="needs transformers and accelerate",
    ),
]
WORLD, STEPS = 2, 6
RATES = {"body": 1e-3, "head": 5e-3}


def _trainer(folder: str, kind: Any, **more: Any) -> Any:
    import transformers

    model = small_bert(layers=1)
    groups = [{**g, "lr": RATES[g["role"]]} for g in sf.split_body_head(model, head="classifier")]
    optimizer = kind(groups, weight_decay=0.1, **more)
    arguments = transformers.TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        warmup_steps=2, max_grad_norm=0.5, use_cpu=True, report_to="none", disable_tqdm=True,
        save_strategy="steps" if more else "no", save_steps=3, logging_strategy="no",
    )  # fmt: skip
    return transformers.Trainer(
        model, arguments, train_dataset=Words(), optimizers=(optimizer, None)
    )


def _weights(trainer: Any) -> list[Tensor]:
    assert trainer.args.parallel_mode.value == "distributed"
    assert isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel)
    assert trainer.state.global_step == STEPS
    return [param.detach().clone() for param in trainer.model.parameters()]


def _beside_torch(folder: str) -> list[Tensor]:
    with launched():
        trained = []
        for kind in (sf.StackelbergAdamW, torch.optim.AdamW):
            trainer = _trainer(folder, kind)
            trainer.train()
            trained.append(_weights(trainer))
        for mine, torchs in zip(*trained, strict=True):
            torch.testing.assert_close(mine, torchs, **IN_TRAINERS)
        return trained[0]


def _resumed(folder: str) -> list[Tensor]:
    with launched():
        whole = _trainer(folder, sf.StackelbergAdamW, ema_decay=0.9)
        whole.train()
        again = _trainer(f"{folder}/resumed", sf.StackelbergAdamW, ema_decay=0.9)
        again.train(resume_from_checkpoint=f"{folder}/checkpoint-3")
        inner = [trainer.optimizer.optimizer for trainer in (again, whole)]
        assert_same_run(again.model, inner[0], whole.model, inner[1])
        averages = [inner[0].state[param]["ema"].clone() for param in again.model.parameters()]
        return _weights(again) + averages


@pytest.mark.parametrize("run", [_beside_torch, _resumed])
def test_under_ddp(ranks: Ranks, tmp_path: Path, run: Any) -> None:
    """As with torch's optimizer; and a run that was resumed as one that was not interrupted."""
    first, second = ranks(WORLD, run, str(tmp_path))
    for mine, others in zip(first, second, strict=True):
        assert torch.equal(mine, others)
