"""What the statistics launches found of infinities: one answer for all tables, and for all ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layout.scaling import move
from ..memory.sharding import Ranks


def found_by_any(parts: Sequence[Tensor], ranks: Sequence[Ranks], device: torch.device) -> Tensor:
    """Make one answer of those of all tables and of all ranks, and give it to each table.

    Args:
        parts: float32 [] each: not 0 where a gradient of the table is not finite; there may be none.
        ranks: those that have to come to the same answer.
        device: of the answer where there are no tables.

    Returns:
        float32 []: not 0 where anybody found an infinity.
    """
    total = parts[0].clone() if parts else torch.zeros((), device=device)
    for part in parts[1:]:
        total += move(part, total.device)
    for group, device_type in ranks:
        _reduce(total, group, device_type)
    if ranks or len(parts) > 1:
        for part in parts:
            part.copy_(total)
    return total


def _reduce(found: Tensor, group: Any, device_type: str) -> None:
    """Set `found` to the largest of all ranks of a group."""
    distributed = sys.modules["torch.distributed"]  # who has a group has imported it
    # where parameters are offloaded to the host, a group may reduce on the GPU alone
    reduced = found if found.device.type == device_type else found.to(device_type)
    distributed.all_reduce(reduced, op=distributed.ReduceOp.MAX, group=group)
    if reduced is not found:
        found.copy_(reduced)
