"""The contestants of each row."""

from __future__ import annotations

from .contestant import Contestant
from .low_precision import low_precision_contestants
from .peers import float32_contestants
from .sharded import sharded_contestants
from .training_step import training_step_contestants
from .workloads import Workload


def contestants_for(workload: Workload) -> list[Contestant]:
    """Return the contestants of a workload's row, also those that cannot run here."""
    if workload.mesh:
        return sharded_contestants()
    if workload.states is not None:
        return low_precision_contestants(workload.states)
    if workload.training_step is not None:
        return training_step_contestants(workload.training_step)
    return float32_contestants()
