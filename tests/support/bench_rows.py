"""Small rows for the tests of the benchmark."""

from __future__ import annotations

from stackelberg_fused.benchmarks import (
    peers,
    preparation,
    training_step,
    workloads,
)

CONTESTANTS = {c.name: c for c in peers.contestants()}
FIELD = [CONTESTANTS[name] for name in ("ours cpu", "ours reference", peers.TORCH_FUSED)]
TINY = workloads.Workload("tiny", ((3, 5), (7,), ()), (0, 0, 1), 1)
ALL = workloads.Around(scaled=True, ema_decay=0.999)
WHOLE = workloads.Workload("whole", ((30, 50), (70,), (40,), ()), (0, 0, 1, 1), 1, around=ALL)
WHOLE_FIELD = [c for c in training_step.field_of(WHOLE) if c.available("cpu")[0]]
HASTE = preparation.Settings(rounds=3, seconds=0.05, compile=False, compile_seconds=30)


def entry_of(row: dict, name: str) -> dict:
    return next(e for e in row["entries"] if e["name"] == name)
