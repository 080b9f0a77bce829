"""A contestant: one optimizer's way to make a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from .workloads import ADAM_BYTES

Groups = list[dict[str, Any]]
Step = Callable[[], Any]
OptimizerAndStep = tuple[torch.optim.Optimizer, Step]
# (True, "") or (False, the reason)
Availability = tuple[bool, str]


@dataclass(frozen=True)
class Contestant:
    """One optimizer's way to make a step.

    Attributes:
        name: unique within a row.
        family: "ours", "torch" or "peer".
        make: builds the optimizer over param groups and returns it with the callable that makes one step.
        available: tells whether the contestant runs on a device, and why it does not.
        exact: the first step must equal the reference's within a few ulp. For the others it must make the
            same update within 2 %, since their states may have fewer bits than float32.
        compiled: the first step compiles, under a time limit.
        max_numel: the most parameters it is timed with.
        bytes_per_parameter: the least that a step has to move.
        dtype: of its parameters and gradients.
        sharded: it gets DTensors in a row that has a mesh.
    """

    name: str
    family: str
    make: Callable[[Groups], OptimizerAndStep]
    available: Callable[[str], Availability]
    exact: bool = False
    compiled: bool = False
    max_numel: int | None = None
    bytes_per_parameter: float = ADAM_BYTES
    dtype: torch.dtype = torch.float32
    sharded: bool = True


def find_contestant(contestants: Iterable[Contestant], name: str) -> Contestant:
    """Return the contestant of that name; StopIteration if there is none."""
    return next(c for c in contestants if c.name == name)


def without_roles(groups: Groups) -> Groups:
    """Copy param groups without the key that only our optimizers know."""
    return [{key: value for key, value in group.items() if key != "role"} for group in groups]


def with_step(optimizer: torch.optim.Optimizer) -> OptimizerAndStep:
    """Pair an optimizer with its own `step`."""
    return optimizer, optimizer.step


def available_everywhere(_device: str) -> Availability:
    """Every device is fine."""
    return True, ""
