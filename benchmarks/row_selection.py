"""Which rows a run has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from . import backward, host, thread_contention
from .contestant import Contestant
from .harness import run_row
from .models import Training, quick_trainings, trainings
from .peers import contestants
from .preparation import Settings
from .rows import quick_workloads, workloads
from .separate_processes import Apart
from .training_step import field_of
from .workloads import TORCH_FUSED, Workload

QUICK_ROUNDS, QUICK_SECONDS, QUICK_HOST_COUNTS = 4, 0.4, (2, 40)
Measure = Callable[[Apart], dict[str, Any]]


def chosen_rows(arguments: argparse.Namespace) -> dict[str, Measure]:
    """By name, what measures a row; in the order in which they are to run."""
    quick = arguments.quick
    settings = Settings(
        device=arguments.device,
        rounds=arguments.rounds or (QUICK_ROUNDS if quick else 60),
        seconds=arguments.seconds or (QUICK_SECONDS if quick else 20.0),
        compile=not (arguments.no_compile or quick),
        compile_seconds=arguments.compile_seconds,
        patience=arguments.wait,
    )

    def step_row(workload: Workload) -> Measure:
        return lambda apart: run_row(workload, field_of(workload), settings, apart)

    def backward_row(training: Training) -> Measure:
        return lambda _apart: backward.run(training, settings)

    rows: dict[str, Measure] = {
        w.name: step_row(w)
        for w in (quick_workloads() if quick else workloads())
        if arguments.device in w.devices
    }
    if quick or arguments.with_backward:
        models = quick_trainings() if quick else trainings()
        rows |= {t.name: backward_row(t) for t in models if arguments.device in t.devices}
    counts = QUICK_HOST_COUNTS if quick else host.COUNTS
    rows[host.NAME] = lambda _apart: host.run(
        *_host_pair(contestants(), settings), settings, counts
    )
    if arguments.device == "cpu" and not quick:
        rows[thread_contention.NAME] = lambda _apart: thread_contention.run(
            5, 30, settings.patience
        )
    wanted = [word.lower() for word in arguments.only or [""]]
    return {n: m for n, m in rows.items() if any(word in n.lower() for word in wanted)}


def _host_pair(field: list[Contestant], settings: Settings) -> tuple[Contestant, Contestant]:
    fused = next(c for c in field if c.name == TORCH_FUSED)
    mine = next(c for c in field if c.family == "ours" and c.available(settings.device)[0])
    return mine, fused
