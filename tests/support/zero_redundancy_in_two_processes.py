"""ZeroRedundancyOptimizer around ours; run as `python zero_redundancy_in_two_processes.py STORE`."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

import stackelberg_fused as sf

WORLD = 2


def groups(**head: Any) -> list[dict[str, Any]]:
    """A head so small that it comes to one process as a whole."""
    torch.manual_seed(0)
    body, last = nn.Linear(4, 4), nn.Linear(4, 1)
    return [
        {"params": list(body.parameters())},
        {"params": list(last.parameters()), "role": "head", **head},
    ]


def step(kind: Any, dealt: list[dict[str, Any]], **options: Any) -> tuple[Any, list[str]]:
    """Two steps; the weights after them, and what was said."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        optimizer = ZeroRedundancyOptimizer(dealt, optimizer_class=kind, **options)
        params = [p for group in dealt for p in group["params"]]
        for _ in range(2):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    said = [
        str(w.message)
        for w in seen
        if "has no effect" in str(w.message) or "names the" in str(w.message)
    ]
    return [p.detach() for p in params], said


def check(rank: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    expected, _ = step(torch.optim.AdamW, groups(lr=0.1), lr=0.01)
    weights, said = step(sf.StackelbergAdamW, groups(lr=0.1), lr=0.01, backend="reference")
    torch.testing.assert_close(weights, expected)
    assert said == [], said
    # the head has its rate from the wrapper, wherever it lies
    _, said = step(sf.StackelbergAdamW, groups(), lr=0.01, head_lr_ratio=10.0)
    assert len(said) == 1, said
    assert said[0].startswith("head_lr_ratio=10 has no effect: every head group came"), said
    # no process lacks a head
    _, said = step(sf.StackelbergAdamW, groups(lr=0.1), lr=0.01, max_grad_norm={"head": 1.0})
    assert said == [], said
    # one process has nothing at all
    one = [{"params": [nn.Parameter(torch.ones(3))], "role": "head", "lr": 0.1}]
    weights, said = step(sf.StackelbergAdamW, one, lr=0.01)
    assert said == [], said
    assert bool((weights[0] < 1).all()), weights
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(check, (sys.argv[1],), WORLD)
    print("checked")
