"""Do our threads fight torch's? Its operators after our step, and in a process without us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import machine
from .clean_process import Alone
from .peers import TORCH_FUSED, contestants
from .preparation import SEED, Entry, gradient_sets
from .rows import workloads
from .timing import now, quantile, quantiles

NAME = "threads: torch after our step"
LIMIT = 1.15
OURS = "ours cpu"
STEPPED = "600x1000 / 2 groups"


def _operators() -> dict[str, Callable[[], object]]:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    product = torch.empty(1024, 1024)
    x, y = torch.randn(1 << 23), torch.randn(1 << 23)
    params = [torch.nn.Parameter(torch.randn(1000, 1000)) for _ in range(8)]
    for p in params:
        p.grad = torch.randn_like(p)
    return {
        "matmul 1024": lambda: torch.mm(a, b, out=product),
        "add 8M": lambda: x.add_(y, alpha=1e-9),
        "fused AdamW 8M": torch.optim.AdamW(params, fused=True).step,
    }


def time_operators(stepped_by: str, repeats: int) -> dict[str, Any]:
    """Nanoseconds of each operator right after a step of the named contestant."""
    workload = next(w for w in workloads() if w.name == STEPPED)
    contestant = next(c for c in contestants() if c.name == stepped_by)
    entry = Entry.build(contestant, workload, workload.tensors("cpu", SEED, 1.0))
    entry.set_gradients(gradient_sets(workload, "cpu", SEED)[0])
    operators = _operators()
    samples: dict[str, list[int]] = {name: [] for name in operators}
    for repeat in range(repeats + 3):
        for name, call in operators.items():
            entry.step()
            start = now()
            call()
            elapsed = now() - start
            if repeat >= 3:
                samples[name].append(elapsed)
    return {"samples_ns": samples}


def _blocks(pairs: int, repeats: int) -> dict[str, list[dict[str, list[int]]]]:
    """Samples by who steps, one block per process; never two processes at once."""
    seen: dict[str, list[dict[str, list[int]]]] = {OURS: [], TORCH_FUSED: []}
    threads = torch.get_num_threads()
    for _ in range(pairs):
        for stepped_by, found in seen.items():
            with Alone() as process:
                request = {"pools": stepped_by, "repeats": repeats, "threads": threads}
                found.append(process.ask(request)["samples_ns"])
    return seen


def run(pairs: int, repeats: int, patience: float) -> dict[str, Any]:
    """A row: `pairs` times a process with us, then one without."""
    row: dict[str, Any] = {"name": NAME, "device": "cpu", "limit": LIMIT, "operators": []}
    seen, row["load"] = machine.quietly(lambda: _blocks(pairs, repeats), patience)
    for name in seen[OURS][0]:
        with_us, without = ([block[name] for block in seen[who]] for who in (OURS, TORCH_FUSED))
        ratios = [
            quantile(a, 0.5) / quantile(b, 0.5) for a, b in zip(with_us, without, strict=True)
        ]
        ratio = round(quantile(ratios, 0.5), 4)
        row["operators"].append(
            {
                "name": name,
                "after_ours": quantiles([s for block in with_us for s in block]),
                "without_us": quantiles([s for block in without for s in block]),
                "ratio": ratio,
                "ratios": [round(r, 4) for r in ratios],
                "met": ratio <= LIMIT if row["load"]["quiet"] else None,
            }
        )
    return row
