"""What is trained: a model, its batches and the fixed data that every run is judged on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import split_digits, split_text, text_batch, text_windows
from .gpt import GPT, GPTConfig

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """`model()` draws initial weights from torch's global generator; `batch(generator)` is one
    training batch; `validation` the batches of every evaluation; `head` names the fast layer."""

    name: str
    head: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    validation: list[Batch]
    loss_unit: str
    data: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """What a run takes unless told otherwise. `lr` is the best of a scan for ONE rate (the
    control's), see `train.py`; the ratios then multiply the head's rate only."""

    steps: int
    quick_steps: int
    lr: float
    ratios: tuple[float, ...]


DEFAULTS = {
    "language": Defaults(steps=1200, quick_steps=20, lr=3e-3, ratios=(1.0, 3.0, 10.0)),
    "digits": Defaults(steps=400, quick_steps=20, lr=3e-3, ratios=(1.0, 3.0, 10.0, 30.0)),
}


def language(quick: bool = False) -> Task:
    """Next-byte prediction on Python's help text with a GPT of 0.47 M parameters."""
    config = GPTConfig(context=32, layers=1, heads=2, width=32) if quick else GPTConfig()
    batch_size, windows = (4, 16) if quick else (16, 512)
    split = split_text()
    (train,), (held_out,) = split.train, split.validation
    inputs, targets = text_windows(held_out, windows, config.context)
    return Task(
        name="language",
        head="lm_head",
        model=lambda: GPT(config),
        batch=lambda generator: text_batch(train, batch_size, config.context, generator),
        validation=list(zip(inputs.split(64), targets.split(64), strict=True)),
        loss_unit="nats per byte",
        data={
            "source": "pydoc_data.topics",
            "train_bytes": len(train),
            "validation_bytes": len(held_out),
            "validation_bytes_used": targets.numel(),
            "batch_size": batch_size,
            "sha256": split.sha256(),
            "model": vars(config),
        },
    )


def digits(quick: bool = False) -> Task:
    """Ten classes of 8 x 8 images with an MLP 64-64-64-10."""
    split = split_digits()
    images, labels = split.train

    def batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(labels), (64,), generator=generator)
        return images[rows], labels[rows]

    return Task(
        name="digits",
        head="head",
        model=_digits_mlp,
        batch=batch,
        validation=[split.validation],
        loss_unit="nats per image",
        data={
            "source": "sklearn.datasets.load_digits",
            "train_images": len(labels),
            "validation_images": len(split.validation[1]),
            "batch_size": 64,
            "sha256": split.sha256(),
            "model": "MLP 64-64-64-10 ReLU",
        },
    )


TASKS = {"language": language, "digits": digits}


def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean loss over all predictions of the batch, and the logits [predictions, classes]."""
    inputs, targets = batch
    logits = model(inputs).flatten(0, -2)
    return F.cross_entropy(logits, targets.flatten()), logits


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """Mean loss and share of right predictions over all of the batches."""
    model.eval()
    loss = correct = count = 0.0
    for batch in batches:
        mean, logits = cross_entropy(model, batch)
        targets = batch[1].flatten()
        loss += mean.item() * len(targets)
        correct += (logits.argmax(-1) == targets).sum().item()
        count += len(targets)
    model.train()
    return loss / count, correct / count


def _digits_mlp() -> nn.Module:
    model = nn.Sequential()
    model.add_module("hidden1", nn.Linear(64, 64))
    model.add_module("relu1", nn.ReLU())
    model.add_module("hidden2", nn.Linear(64, 64))
    model.add_module("relu2", nn.ReLU())
    model.add_module("head", nn.Linear(64, 10))
    return model
