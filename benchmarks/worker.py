"""What a process of its own measures; see ``clean_process.py``."""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch

from .machine import quietly
from .peers import TORCH_FUSED
from .preparation import SEED, Entry, gradient_sets
from .rows import quick_workloads, workloads
from .thread_contention import time_operators
from .timing import interleave, rounded
from .training_step import field_of


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request.

    {"row", "contestant", "device", "rounds", "seconds", "threads", "patience"} times a contestant on
    a row's workload: {"samples_ns"}. {"pools", "repeats", "threads"} times torch's operators, each
    after a step of "ours cpu" or "torch fused".
    """
    torch.set_num_threads(request["threads"])
    if "pools" in request:
        found = time_operators(request["pools"], request["repeats"])
        alone = request["pools"] == TORCH_FUSED
    else:
        found = _row(request)
        alone = request["contestant"] == TORCH_FUSED
        if request["device"] == "cuda":
            # nothing is kept while the other process measures
            gc.collect()
            torch.cuda.empty_cache()
    if alone and "stackelberg_fused" in sys.modules:
        raise RuntimeError("this process must not import stackelberg_fused")
    return found


def _row(request: dict[str, Any]) -> dict[str, Any]:
    workload = next(w for w in [*workloads(), *quick_workloads()] if w.name == request["row"])
    device = request["device"]
    contestant = next(c for c in field_of(workload) if c.name == request["contestant"])
    start = workload.start(device, SEED)
    entry = Entry.build(contestant, workload, start)
    del start
    action = entry.action(device, *gradient_sets(workload, device, SEED, contestant.dtype))
    samples, load = quietly(
        lambda: interleave({contestant.name: action}, request["rounds"], request["seconds"]),
        request["patience"],
    )
    return {"samples_ns": rounded(samples[contestant.name]), "load": load}
