"""Which parameters have a momentum buffer: the first step of one that has none does not dampen its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..groups.hyperparameters import Hyperparameters
from ..groups.rules import Rule
from ..groups.schemes import has_moment
from ..layout.table import Table


def note_momentum(
    table: Table,
    hyperparameters: Hyperparameters,
    state: Mapping[Tensor, dict[str, Any]],
    affected: np.ndarray,
) -> None:
    """Note it anew of slots whose rule has changed.

    Args:
        affected: bool [slots].
    """
    rules = np.array([hyperparameters.rule(slot.group) for slot in table.slots])
    is_momentum = rules & Rule.MOMENTUM != 0
    for i in np.flatnonzero(affected).tolist():
        entry = state.get(table.slots[i].param) or {}
        # one without a step was allocated for a step that a gradient scaler skipped
        has_buffer = has_moment(entry, "momentum_buffer") and (
            table.counts is not None or table.step_counts[i] > 0
        )
        table.momentum_ready[i] = has_buffer or not is_momentum[i]
    if table.counts is None:
        return
    ready = torch.from_numpy(table.momentum_ready.astype(np.int32)).to(table.device)
    mask, momentum = (torch.from_numpy(m).to(table.device) for m in (affected, is_momentum))
    mask &= ~momentum | (table.counts.steps > 0)
    table.counts.ready.copy_(torch.where(mask, ready, table.counts.ready))
