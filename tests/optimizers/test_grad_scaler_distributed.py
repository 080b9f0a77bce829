"""An infinity that one of two processes finds: both skip, as with torch's scalers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks, of_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor

import stackelberg_fused as sf

pytestmark = of_ranks
WORLD, SCALE = 2, 256.0
# in which step which process finds an infinity; None: both, in the loss
BAD: dict[int, int | None] = {1: 0, 3: 1, 4: None}


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    # the last one is smaller than the world: one process holds nothing of it
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))


def local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def train(model: nn.Module, scaler: Any, optimizers: list[Any], rank: int) -> list[Any]:
    """Six steps; returns the scales and, last, the parameters."""
    found: list[Any] = []
    for number in range(6):
        torch.manual_seed(10 * number)
        loss = model(torch.randn(4, 5)).square().mean()
        if number in BAD and BAD[number] is None:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        if number in BAD and BAD[number] == rank:
            first = next(p for p in model.parameters() if p.grad is not None)
            local(first.grad).view(-1)[-1] = torch.nan
        for optimizer in optimizers:
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        found.append(scaler.get_scale())
    return [*found, [local(p).detach().clone() for p in model.parameters()]]


def assert_same(ours: list[Any], torchs: list[Any]) -> None:
    assert ours[:-1] == torchs[:-1], (ours[:-1], torchs[:-1])
    for p, q in zip(ours[-1], torchs[-1], strict=True):
        torch.testing.assert_close(p, q)
    every: list[Any] = [None] * WORLD
    dist.all_gather_object(every, ours[:-1])
    assert all(scales == every[0] for scales in every), every


def sharded(rank: int, scaler: Any, make: Callable[[Any], Any]) -> list[Any]:
    model = model_of()
    for module in (model[0], model[2], model):
        fully_shard(module)
    return train(model, scaler, [make(model.parameters())], rank)


def replicated(rank: int, scaler: Any, make: Callable[[Any], Any]) -> list[Any]:
    """Both processes hold all parameters, as under FSDP1 each holds a flat part: only a process group tells."""
    model = model_of()
    return train(model, scaler, [make(model.parameters())], rank)


def check_all_skip(fused: bool | None, backend: str) -> None:
    rank = dist.get_rank()
    scaled = {"init_scale": SCALE, "growth_interval": 2}

    def ours(params: Any) -> Any:
        return sf.StackelbergAdamW(params, lr=0.1, fused=fused, backend=backend)

    def torchs(params: Any) -> Any:
        return torch.optim.AdamW(params, lr=0.1)

    expected = sharded(rank, torch.amp.GradScaler("cpu", **scaled), torchs)
    assert len(set(expected[:-1])) > 1
    assert_same(sharded(rank, sf.GradScaler("cpu", **scaled), ours), expected)
    expected = replicated(rank, ShardedGradScaler("cpu", **scaled), torchs)
    for make in (ours, torchs):
        scaler = sf.GradScaler("cpu", process_group=dist.group.WORLD, **scaled)
        assert_same(replicated(rank, scaler, make), expected)


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_both_processes_skip(ranks: Ranks, fused: bool | None, backend: str) -> None:
    ranks(WORLD, check_all_skip, fused, backend)
