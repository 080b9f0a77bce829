"""Alternating steps under DistributedDataParallel; run as `python alternating_in_two_processes.py STORE`."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel as Ddp

import stackelberg_fused as sf

WORLD, ROWS = 2, 8
# head_steps, microbatches, with a scaler
KINDS = [(1, 1, False), (2, 1, False), (1, 3, False), (2, 2, True)]


def players() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, 3)


def optimizer_of(body: nn.Module, head: nn.Module) -> Any:
    groups = [
        {"params": list(body.parameters())},
        {"params": list(head.parameters()), "role": "head"},
    ]
    return sf.StackelbergSGD(groups, lr=0.05, momentum=0.9)


def train(
    body: Any, head: Any, kind: tuple[int, int, bool], rows: slice, optimizer: Any
) -> list[torch.Tensor]:
    head_steps, microbatches, scaled = kind
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    batches = torch.Generator().manual_seed(1)
    for _ in range(4):
        inputs = torch.randn(WORLD * ROWS, 5, generator=batches)[rows]
        targets = torch.randn(WORLD * ROWS, 3, generator=batches)[rows]
        sf.alternating_step(
            body,
            head,
            F.mse_loss,
            optimizer,
            inputs,
            targets,
            head_steps,
            scaler=scaler,
            microbatches=microbatches,
        )
    return [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]


def refused(body: Any, head: Any, optimizer: Any) -> bool:
    said = ""
    try:
        train(body, head, KINDS[0], slice(0, 1), optimizer)
    except RuntimeError as error:
        said = str(error)
    return "DistributedDataParallel" in said


def run(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, WORLD), rank=rank, world_size=WORLD)
    for kind in KINDS:
        body, head = players()
        expected = train(body, head, kind, slice(None), optimizer_of(body, head))
        body, head = players()
        optimizer = optimizer_of(body, head)
        mine = slice(rank * ROWS, (rank + 1) * ROWS)
        found = train(Ddp(body), Ddp(head), kind, mine, optimizer)
        for ours, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, whole)
            every = [torch.empty_like(ours) for _ in range(WORLD)]
            dist.all_gather(every, ours)
            assert torch.equal(every[0], every[1]), "the processes went apart"
    body, head = players()
    optimizer = optimizer_of(body, head)
    before = [p.detach().clone() for p in body.parameters()]
    whole = Ddp(nn.Sequential(body, head))
    assert refused(body, head, optimizer), "both are bare"
    assert refused(Ddp(body), head, optimizer), "the head is bare"
    assert refused(lambda x: body(x), lambda x: head(x), optimizer), "what is not seen is bare"
    assert all(torch.equal(p, q) for p, q in zip(body.parameters(), before, strict=True))
    del whole
    assert not refused(body, head, optimizer), "nobody wraps it any more"
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(run, (sys.argv[1],), nprocs=WORLD)
    print("checked")
