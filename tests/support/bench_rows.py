"""Small rows for the tests of the benchmark."""

from __future__ import annotations

import dataclasses

from stackelberg_fused.benchmarks.contestant import Contestant
from stackelberg_fused.benchmarks.lineup import contestants_for
from stackelberg_fused.benchmarks.peers import float32_contestants
from stackelberg_fused.benchmarks.preparation import MeasurementSettings
from stackelberg_fused.benchmarks.rows import workloads
from stackelberg_fused.benchmarks.workloads import TORCH_FUSED, TrainingStep, Workload

ROWS = {w.name: w for w in workloads()}
CONTESTANTS = {c.name: c for c in float32_contestants()}
TRIO = [CONTESTANTS[name] for name in ("ours cpu", "ours reference", TORCH_FUSED)]
TINY = Workload("tiny", ((3, 5), (7,), ()), (0, 0, 1), 1)
TRAINING_STEP = Workload(
    "training step",
    ((30, 50), (70,), (40,), ()),
    (0, 0, 1, 1),
    1,
    training_step=TrainingStep(scaled=True, ema_decay=0.999),
)
TRAINING_STEP_CONTESTANTS = [c for c in contestants_for(TRAINING_STEP) if c.available("cpu")[0]]
FAST = MeasurementSettings(rounds=3, seconds=0.05, compile=False, compile_seconds=30)


def entry_of(row: dict, name: str) -> dict:
    """Return the record of a contestant in a row."""
    return next(e for e in row["entries"] if e["name"] == name)


def with_wrong_step(contestant: Contestant, error: float) -> Contestant:
    """Add an error to the last element of the contestant's first parameter after each step."""

    def make(groups):
        optimizer, step = contestant.make(groups)
        target = groups[0]["params"][0]

        def wrong_step():
            step()
            target.data.view(-1)[-1] += error

        return optimizer, wrong_step

    return dataclasses.replace(contestant, make=make)
