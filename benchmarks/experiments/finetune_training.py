"""Pretraining of a body, and fine-tuning with a new head."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from ...game.alternating import alternating_step
from ...game.best_response import best_response
from ...optimizers.adam import StackelbergAdamW
from ...optimizers.sgd import StackelbergSGD
from .arm import GRID_STEP
from .finetune_arms import HEAD_ONLY, Arm
from .finetune_data import BATCH, FEATURES, NEW_CLASSES, Split, Task, split

PRETRAINING_RATE, PRETRAINING_BATCH = 1e-3, 64
MOMENTUM = 0.9
RIDGE = 1e-3  # of a best response
DECIMALS = 5  # in the JSON

Examples = tuple[Tensor, Tensor]


def make_optimizer(
    name: str, body: nn.Module, head: nn.Module, rates: tuple[float, float]
) -> StackelbergAdamW | StackelbergSGD:
    """Return AdamW without decay, or SGD with momentum, for both players."""
    groups: list[dict[str, Any]] = [
        {"params": list(part.parameters()), "role": role, "lr": lr}
        for part, role, lr in zip((body, head), ("body", "head"), rates, strict=True)
    ]
    if name == "SGD":
        return StackelbergSGD(groups, momentum=MOMENTUM)
    return StackelbergAdamW(groups, weight_decay=0.0)


@cache
def pretrained(task: Task, seed: int) -> tuple[nn.Module, Split]:
    """Return a seed's data, and the body that has learned its old classes, clean and under each shift."""
    data = split(task, seed)
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    body, head = task.body(), nn.Linear(FEATURES, task.classes - NEW_CLASSES)
    optimizer = make_optimizer("AdamW", body, head, (PRETRAINING_RATE, PRETRAINING_RATE))
    inputs, labels = data.old
    for step in range(task.pretraining):
        set_rates(optimizer, (PRETRAINING_RATE,) * 2, falling(step, task.pretraining))
        rows = torch.randint(len(labels), (PRETRAINING_BATCH,), generator=generator)
        parts = inputs[rows].chunk(1 + len(task.shifts))
        shifted = [
            f(part, generator) for f, part in zip(task.shifts.values(), parts[1:], strict=True)
        ]
        loss = F.cross_entropy(head(body(torch.cat([parts[0], *shifted]))), labels[rows])
        loss.backward()
        optimizer.step(zero_grad=True)
    return body, data


def falling(step: int, steps: int) -> float:
    """Return the share of the rates at a step from 0 on: half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def set_rates(optimizer: Any, rates: tuple[float, float], factor: float) -> None:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = factor * rate


def fine_tune(
    task: Task, name: str, arm: Arm, exponent: float, seed: int, probe_exponent: float | None
) -> tuple[nn.Module, nn.Module]:
    """Fine-tune once; return body and head.

    Args:
        name: of the optimizer.
        exponent: of the rates, as `Arm.rates` takes it.
        probe_exponent: of the head's rate while it learns alone, where it does not do so to the end.
    """
    trained, data = pretrained(task, seed)
    body = copy.deepcopy(trained)
    torch.manual_seed(seed)
    head = nn.Linear(FEATURES, NEW_CLASSES)
    generator = Generator().manual_seed(seed)
    rates = arm.rates(exponent)
    optimizer = make_optimizer(name, body, head, rates)
    batches = [draw(data, generator) for _ in range(task.steps)]
    alone = task.steps if arm == HEAD_ONLY else round(arm.share * task.steps)
    if arm.mode == "exact first":
        respond(body, head, data)
    else:
        probe = exponent if probe_exponent is None else probe_exponent
        train_head(body, head, optimizer, GRID_STEP**probe, batches[:alone])
    for step, (inputs, labels) in enumerate(batches[alone:]):
        set_rates(optimizer, rates, falling(step, task.steps - alone))
        if arm.mode == "alternating":
            alternating_step(body, head, F.cross_entropy, optimizer, inputs, labels, arm.head_steps)
        else:
            F.cross_entropy(head(body(inputs)), labels).backward()
            optimizer.step(zero_grad=True)
    return body, head


def draw(data: Split, generator: Generator) -> Examples:
    """Return a batch of the training examples."""
    inputs, labels = data.train
    rows = torch.randint(len(labels), (BATCH,), generator=generator)
    return inputs[rows], labels[rows]


def train_head(
    body: nn.Module, head: nn.Module, optimizer: Any, rate: float, batches: list[Examples]
) -> None:
    """Make a step of the head with each batch; the body stays."""
    for step, (inputs, labels) in enumerate(batches):
        set_rates(optimizer, (0.0, rate), falling(step, len(batches)))
        with torch.no_grad():
            features = body(inputs)
        F.cross_entropy(head(features), labels).backward()
        optimizer.step(role="head", zero_grad=True)


def respond(body: nn.Module, head: nn.Module, data: Split) -> None:
    """Set the head to its best response to the body's features of all training examples."""
    inputs, labels = data.train
    with torch.no_grad():
        features = body(inputs)
    best_response(head, features, labels, "cross_entropy", RIDGE, tolerance=1e-6).assign(head)


@torch.no_grad()
def loss_and_accuracy(body: nn.Module, head: nn.Module, examples: Examples) -> tuple[float, float]:
    """Return the mean loss, infinite where it is not finite, and the share of right answers."""
    inputs, labels = examples
    outputs = head(body(inputs))
    loss = float(F.cross_entropy(outputs, labels))
    accuracy = float((outputs.argmax(1) == labels).float().mean())
    return (round(loss, DECIMALS) if math.isfinite(loss) else math.inf), round(accuracy, DECIMALS)
