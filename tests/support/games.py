"""A small body and head, their batches and optimizers, and the alternating step by hand."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cases import normal
from checks import assert_same_bits
from torch import Tensor, nn

import stackelberg_fused as sf

ROWS = 12


def players(device: Any = "cpu") -> tuple[nn.Sequential, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU())
        return body.to(device), nn.Linear(7, 4).to(device)


def data(number: int, device: Any = "cpu") -> tuple[Tensor, Tensor]:
    targets = torch.arange(number, number + ROWS) % 4
    return normal((ROWS, 6), 100 + number).to(device), targets.to(device)


def optimizer_of(body: nn.Module, head: nn.Module, kind: str = "adamw", **more: Any) -> Any:
    groups = [
        {"params": list(body.parameters())},
        {"params": list(head.parameters()), "role": "head"},
    ]
    classes = {"adamw": sf.StackelbergAdamW, "sgd": sf.StackelbergSGD}
    return classes[kind](groups, **{"lr": 0.01, **more})


def by_hand_step(
    body: Any, head: Any, optimizer: Any, inputs: Tensor, targets: Tensor, head_steps: int
) -> tuple[Tensor, list[Tensor]]:
    """Everything evaluated anew for each update."""
    losses = []
    for role in ["head"] * head_steps + ["body"]:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(body(inputs)), targets)
        loss.backward()
        optimizer.step(role=role)
        losses.append(loss.detach())
    return losses[-1], losses[:-1]


def assert_same_players(first: tuple[nn.Module, ...], second: tuple[nn.Module, ...]) -> None:
    for one, other in zip(first, second, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert_same_bits(p, q)


def all_of(players: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    return [p for module in players for p in module.parameters()]
