"""Contention between our threads and torch's: torch's operators after our step, and in a process without us."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import machine
from .clean_process import CleanProcess
from .contestant import find_contestant
from .formatting import duration, load_summary, verdict
from .peers import float32_contestants
from .preparation import SEED, PreparedContestant, gradient_sets
from .rows import workloads
from .timing import now, quantile, quantiles
from .workloads import TORCH_FUSED

NAME = "threads: torch after our step"
LIMIT = 1.15
OURS = "ours cpu"
WORKLOAD = "600x1000 / 2 groups"
WARM_UP_REPEATS = 3


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


def time_operators(contestant_name: str, repeats: int) -> dict[str, Any]:
    """Time each operator right after a step of the named contestant, in nanoseconds."""
    workload = next(w for w in workloads() if w.name == WORKLOAD)
    contestant = find_contestant(float32_contestants(), contestant_name)
    start = workload.tensors("cpu", SEED, 1.0)
    prepared = PreparedContestant.build(contestant, workload, start)
    prepared.set_gradients(gradient_sets(workload, "cpu", SEED)[0])
    operators = _operators()
    samples: dict[str, list[int]] = {name: [] for name in operators}
    for repeat in range(WARM_UP_REPEATS + repeats):
        for name, call in operators.items():
            prepared.step()
            start_ns = now()
            call()
            elapsed = now() - start_ns
            if repeat >= WARM_UP_REPEATS:
                samples[name].append(elapsed)
    return {"samples_ns": samples}


def _samples_by_contestant(pairs: int, repeats: int) -> dict[str, list[dict[str, list[int]]]]:
    """Return samples by contestant, then by process, then by operator; one process runs at a time."""
    by_contestant: dict[str, list[dict[str, list[int]]]] = {OURS: [], TORCH_FUSED: []}
    threads = torch.get_num_threads()
    for _ in range(pairs):
        for name, by_process in by_contestant.items():
            with CleanProcess() as process:
                request = {"operators_after": name, "repeats": repeats, "threads": threads}
                by_process.append(process.ask(request)["samples_ns"])
    return by_contestant


def run(pairs: int, repeats: int, patience: float) -> dict[str, Any]:
    """Measure the row: `pairs` times a process that steps with our optimizer, then one with torch's."""
    row: dict[str, Any] = {"name": NAME, "device": "cpu", "limit": LIMIT, "operators": []}
    by_contestant, row["load"] = machine.measure_when_quiet(
        lambda: _samples_by_contestant(pairs, repeats), patience
    )
    for name in by_contestant[OURS][0]:
        ours, theirs = (
            [by_operator[name] for by_operator in by_contestant[who]] for who in (OURS, TORCH_FUSED)
        )
        ratios = [quantile(a, 0.5) / quantile(b, 0.5) for a, b in zip(ours, theirs, strict=True)]
        ratio = round(quantile(ratios, 0.5), 4)
        row["operators"].append(
            {
                "name": name,
                "after_ours": quantiles([ns for samples in ours for ns in samples]),
                "without_us": quantiles([ns for samples in theirs for ns in samples]),
                "ratio": ratio,
                "ratios": [round(r, 4) for r in ratios],
                "met": ratio <= LIMIT if row["load"]["quiet"] else None,
            }
        )
    return row


def lines(row: dict[str, Any]) -> Iterator[str]:
    """Format the row as text."""
    yield row["name"]
    yield f"  against a process that never imports us: at most {row['limit']}"
    yield f"  {'operator':<18}{'after our step':>16}{'without us':>14}{'ratio':>8}"
    for operator in row["operators"]:
        yield (
            f"  {operator['name']:<18}{duration(operator['after_ours']['p50_ns']):>16}"
            f"{duration(operator['without_us']['p50_ns']):>14}{operator['ratio']:>8.2f}"
            f"  {verdict(operator['met'])}"
        )
    yield f"  {load_summary(row['load'])}"
