"""One way to make a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .workloads import ADAM_BYTES

Groups = list[dict[str, Any]]
Step = Callable[[], Any]
Verdict = tuple[bool, str]


@dataclass(frozen=True)
class Contestant:
    """One way to make a step.

    `make(groups)` returns the optimizer and the callable that makes one step. `exact` contestants
    are held to the reference within a few ulp, the others to the same update within 2 % (their
    states may be narrower than float32). `dtype` is that of its parameters and gradients.
    """

    name: str
    family: str  # "ours", "torch" or "peer"
    make: Callable[[Groups], tuple[torch.optim.Optimizer, Step]]
    available: Callable[[str], Verdict]
    exact: bool = False
    compiled: bool = False
    max_numel: int | None = None
    bytes_per_parameter: float = ADAM_BYTES
    dtype: torch.dtype = torch.float32


def plain(groups: Groups) -> Groups:
    return [{key: value for key, value in group.items() if key != "role"} for group in groups]


def with_step(optimizer: torch.optim.Optimizer) -> tuple[torch.optim.Optimizer, Step]:
    return optimizer, optimizer.step


def anywhere(_device: str) -> Verdict:
    return True, ""
