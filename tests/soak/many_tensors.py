"""20 000 tensors: construction, steps and checkpoints beside torch's fused AdamW."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from soak import report_of_part, scale_of_part
from torch import nn

import stackelberg_fused as sf

TENSORS = 20_000
NEAR = {"rtol": 1e-5, "atol": 1e-5}  # over the steps taken here, as in the tests


def seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 3)


def set_gradients(params: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


def compare(make: Any, count: int, scale: float) -> dict[str, Any]:
    """Figures of one of ours and torch's, both over `make(count)`; AssertionError where results differ."""
    count = max(20, round(count * scale))
    figures: dict[str, Any] = {"count": count}
    values: list[list[nn.Parameter]] = []
    # in turns, twice: other processes disturb one as much as the other
    for turn in range(2):
        for name, cls, more in (
            ("ours", sf.StackelbergAdamW, {}),
            ("torch", torch.optim.AdamW, {"fused": True}),
        ):
            groups = make(count)
            start = time.perf_counter()
            optimizer = cls(groups, lr=1e-2, **more)
            took = round(time.perf_counter() - start, 3)
            figures.setdefault(f"construct_{name}", []).append(took)
            if turn == 0:
                continue
            params = [p for group in optimizer.param_groups for p in group["params"]]
            for step in range(3):
                set_gradients(params, step)
                figures[f"step_{name}"] = seconds(optimizer.step)
            packed = copy.deepcopy(optimizer.state_dict())
            figures[f"load_{name}"] = seconds(lambda o=optimizer, d=packed: o.load_state_dict(d))
            set_gradients(params, 3)
            optimizer.step()
            values.append(params)
    for p, q in zip(*values, strict=True):
        torch.testing.assert_close(p, q, **NEAR)
    for name in ("construct_ours", "construct_torch"):
        figures[name] = min(figures[name])
    figures["construct_ratio"] = round(figures["construct_torch"] / figures["construct_ours"], 1)
    return figures


def _tensors(count: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(8, generator=generator)) for _ in range(count)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    report_of_part(compare(_tensors, TENSORS, scale_of_part()))
