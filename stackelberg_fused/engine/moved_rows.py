"""State of a parameter whose rows were chosen anew: each takes the state of an old row, or begins with none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..backends.reference_storage import same_bits
from ..groups.schemes import MASTER_STATE, MOMENTS, code_name, scale_name
from ..layout.table import STATE_FIELD
from .state import BEGIN_WITH_WEIGHTS
from .state_conversion import decoded


@torch.no_grad()
def moved_entry(
    entry: Mapping[str, Any], old: Tensor, new: Tensor, rows: Tensor | None
) -> dict[str, Any]:
    """Return what the state is to hold of `new`, which takes the place of `old`; modifies nothing.

    Codes of 8 bits move with their scales where no block crosses rows; else they are decoded, and whoever attaches the
    entry encodes them again. What lies beside a weight of 16 bits moves with the weights that stayed what they were to
    the bit; beside others it begins anew. Counts, and what is no state of ours, are the entry's own.

    Args:
        entry: of `old`.
        old, new: of one dtype and device, of as many dimensions; [n, ...] and [m, ...].
        rows: int64 [m] on their device: for each row of `new` one of `old`, or -1; None: the same.
    """
    found = _with_whole_rows(entry, new, rows)
    was, now = old.detach(), new.detach()
    for name, value in found.items():
        if name not in STATE_FIELD or value is None:
            continue
        begin = now if name in BEGIN_WITH_WEIGHTS else None
        found[name] = moved = _moved(value, rows, begin)
        if name in MASTER_STATE.values():
            stays = same_bits(_moved(was, rows), now)
            anew = torch.zeros_like(moved) if begin is None else now.to(moved.dtype)
            found[name] = torch.where(stays, moved, anew)
    return found


def _with_whole_rows(entry: Mapping[str, Any], new: Tensor, rows: Tensor | None) -> dict[str, Any]:
    """Return an entry in which moments whose blocks cross rows, or would lie in another order, are decoded."""
    found = dict(entry)
    for name in MOMENTS:
        codes, scales = entry.get(code_name(name)), entry.get(scale_name(name))
        if codes is None or scales is None:
            continue
        if rows is None:
            is_whole = codes.stride() == new.stride()
        else:
            is_whole = codes.dim() > 1 and codes.is_contiguous() and new.is_contiguous()
        if not is_whole:
            del found[code_name(name)], found[scale_name(name)]
            found[name] = decoded(name, codes, scales)
    return found


def _moved(value: Tensor, rows: Tensor | None, begin: Tensor | None = None) -> Tensor:
    """Return the rows of some state in their new order.

    Args:
        value: [n, ...].
        rows: as above.
        begin: [m, ...]: what the other rows are; by default zeros.
    """
    if rows is None:
        return value
    if not len(value):  # there has to be a row to take
        value = value.new_zeros((1, *value.shape[1:]))
    moved = value.index_select(0, rows.clamp(min=0))
    fresh = (rows < 0).nonzero().flatten()
    if begin is None:
        return moved.index_fill_(0, fresh, 0)
    return moved.index_copy_(0, fresh, begin.index_select(0, fresh).to(moved.dtype))
