"""The training tasks: a model, its training batches and the fixed validation data of all runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import (
    split_digits,
    split_text,
    text_batch,
    text_windows,
)
from .gpt import GPT, GPTConfig

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """One training task.

    Attributes:
        name: the name on the command line.
        head: the name of the head's module.
        model: returns a new model; its weights come from torch's global generator.
        batch: draws one training batch, (inputs, targets).
        validation: the batches of each evaluation.
        loss_unit: the unit of the loss, for tables and plots.
        data: the description of data and model in the report.
        training: the whole training set, if it is small; else empty.
        sample: returns sample output of a trained model, if the task has any.
    """

    name: str
    head: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    validation: list[Batch]
    loss_unit: str
    data: dict[str, object]
    training: list[Batch] = field(default_factory=list)
    sample: Callable[[nn.Module], str] | None = None


def language(quick: bool = False) -> Task:
    """Predict the next byte of Python's help text with a GPT of 0.47 M parameters (`quick`: a tiny one)."""
    config = GPTConfig(context=32, layers=1, heads=2, width=32) if quick else GPTConfig()
    batch_size, windows = (4, 16) if quick else (12, 256)
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
            "sha256": split.sha256(),
            "train_bytes": len(train),
            "validation_bytes": len(held_out),
            "validation_bytes_predicted": targets.numel(),
            "batch_size": batch_size,
            "model": "GPT",
            **vars(config),
        },
        sample=sample_text,
    )


def digits(quick: bool = False) -> Task:
    """Classify 8 x 8 images into ten classes with an MLP 64-64-64-10 of 9 k parameters."""
    split = split_digits()
    images, labels = split.train
    others, their_labels = split.validation
    batch_size = 64

    def batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(labels), (batch_size,), generator=generator)
        return images[rows], labels[rows]

    return Task(
        name="digits",
        head="head",
        model=digits_mlp,
        batch=batch,
        validation=[(others, their_labels)],
        training=[(images, labels)],
        loss_unit="nats per image",
        data={
            "source": "sklearn.datasets.load_digits",
            "sha256": split.sha256(),
            "train_images": len(labels),
            "validation_images": len(their_labels),
            "batch_size": batch_size,
            "model": "MLP 64-64-64-10 ReLU",
        },
    )


TASKS = {"language": language, "digits": digits}


def digits_mlp() -> nn.Module:
    model = nn.Sequential()
    model.add_module("hidden1", nn.Linear(64, 64))
    model.add_module("relu1", nn.ReLU())
    model.add_module("hidden2", nn.Linear(64, 64))
    model.add_module("relu2", nn.ReLU())
    model.add_module("head", nn.Linear(64, 10))
    return model


def cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the mean loss over all predictions of a batch, [], and their logits, [predictions, classes]."""
    inputs, targets = batch
    logits = model(inputs).flatten(0, -2)
    return F.cross_entropy(logits, targets.flatten()), logits


def sample_text(model: nn.Module, prompt: str = "The ", count: int = 300) -> str:
    """Return the prompt and `count` bytes that the model appends, sampled with a fixed seed."""
    device = next(model.parameters()).device
    tokens = torch.tensor([list(prompt.encode())], device=device)
    generate: Any = model.generate
    generated = generate(tokens, count, torch.Generator(device).manual_seed(0))
    return bytes(generated[0].tolist()).decode(errors="replace")


@torch.no_grad()
def evaluate(model: nn.Module, batches: list[Batch]) -> tuple[float, float]:
    """Return the mean loss and the share of correct predictions over all batches."""
    loss = correct = count = 0.0
    for batch in batches:
        mean, logits = cross_entropy(model, batch)
        targets = batch[1].flatten()
        loss += mean.item() * len(targets)
        correct += (logits.argmax(-1) == targets).sum().item()
        count += len(targets)
    return loss / count, correct / count
