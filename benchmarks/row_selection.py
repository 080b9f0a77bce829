"""The rows that a run measures, by its command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from . import backward, host, peak_memory, thread_contention
from .contestant import Contestant, find_contestant
from .harness import run_row
from .lineup import contestants_for
from .models import TrainingWorkload, quick_training_workloads, training_workloads
from .peers import float32_contestants
from .preparation import MeasurementSettings
from .rows import quick_workloads, workloads
from .separate_processes import SeparateProcesses
from .workloads import TORCH_FUSED, Workload

QUICK_ROUNDS, QUICK_SECONDS, QUICK_HOST_COUNTS = 4, 0.4, (2, 40)
Measure = Callable[[SeparateProcesses], dict[str, Any]]


def selected_rows(arguments: argparse.Namespace) -> dict[str, Measure]:
    """Return the functions that measure the rows, by name and in the order of the run."""
    quick = arguments.quick
    settings = MeasurementSettings(
        device=arguments.device,
        rounds=arguments.rounds or (QUICK_ROUNDS if quick else 60),
        seconds=arguments.seconds or (QUICK_SECONDS if quick else 20.0),
        compile=not (arguments.no_compile or quick),
        compile_seconds=arguments.compile_seconds,
        patience=arguments.wait,
    )

    def step_row(workload: Workload) -> Measure:
        return lambda processes: run_row(workload, contestants_for(workload), settings, processes)

    def backward_row(workload: TrainingWorkload) -> Measure:
        return lambda _processes: backward.run_row(workload, settings)

    rows: dict[str, Measure] = {
        w.name: step_row(w)
        for w in (quick_workloads() if quick else workloads())
        if arguments.device in w.devices
    }
    if quick or arguments.with_backward:
        trained = quick_training_workloads() if quick else training_workloads()
        rows |= {w.name: backward_row(w) for w in trained if arguments.device in w.devices}
        width = 128 if quick else peak_memory.WIDTH
        rows[peak_memory.NAME] = lambda _processes: peak_memory.run(arguments.device, width)
    counts = QUICK_HOST_COUNTS if quick else host.COUNTS
    rows[host.NAME] = lambda _processes: host.run(
        *_host_contestants(settings.device), settings, counts
    )
    if arguments.device == "cpu" and not quick:
        rows[thread_contention.NAME] = lambda _processes: thread_contention.run(
            5, 30, settings.patience
        )
    wanted = [text.lower() for text in arguments.only or [""]]
    return {
        name: measure
        for name, measure in rows.items()
        if any(text in name.lower() for text in wanted)
    }


def _host_contestants(device: str) -> tuple[Contestant, Contestant]:
    """Return the first of ours that runs on the device, and torch's fused step."""
    contestants = float32_contestants()
    ours = next(c for c in contestants if c.family == "ours" and c.available(device)[0])
    return ours, find_contestant(contestants, TORCH_FUSED)
