"""Answers to the requests that a process of ``clean_process.py`` gets."""

from __future__ import annotations

import gc
import sys
from typing import Any

import torch

from .contestant import find_contestant
from .lineup import contestants_for
from .machine import measure_when_quiet
from .preparation import SEED, PreparedContestant, gradient_sets
from .rows import quick_workloads, workloads
from .thread_contention import time_operators
from .timing import interleave, rounded
from .workloads import TORCH_FUSED


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answer one request; nothing is held in memory between requests.

    {"row", "contestant", "device", "rounds", "seconds", "threads", "patience"} times a contestant on a row's
    workload: {"samples_ns", "load"}. {"operators_after", "repeats", "threads"} times torch's operators, each
    after a step of the contestant "ours cpu" or "torch fused": {"samples_ns"}.
    """
    torch.set_num_threads(request["threads"])
    if "operators_after" in request:
        name = request["operators_after"]
        result = time_operators(name, request["repeats"])
    else:
        name = request["contestant"]
        result = _time_contestant(request)
        if request["device"] == "cuda":
            # free the memory for the other process
            gc.collect()
            torch.cuda.empty_cache()
    if name == TORCH_FUSED and "stackelberg_fused" in sys.modules:
        raise RuntimeError("this process must not import stackelberg_fused")
    return result


def _time_contestant(request: dict[str, Any]) -> dict[str, Any]:
    workload = next(w for w in [*workloads(), *quick_workloads()] if w.name == request["row"])
    device = request["device"]
    contestant = find_contestant(contestants_for(workload), request["contestant"])
    start = workload.start(device, SEED)
    prepared = PreparedContestant.build(contestant, workload, start)
    del start
    action = prepared.action(device, *gradient_sets(workload, device, SEED, contestant.gradients))
    samples, load = measure_when_quiet(
        lambda: interleave({contestant.name: action}, request["rounds"], request["seconds"]),
        request["patience"],
    )
    return {"samples_ns": rounded(samples[contestant.name]), "load": load}
