"""The arguments of a launch, as csrc/tables.h lays them out."""

from __future__ import annotations

import struct

from torch import Tensor

from ..statistics import ClipLimits
from ..tables import STATISTICS_ARGS, STEP_ARGS
from .base import Work

_STEP = struct.Struct("<" + "".join(STEP_ARGS.values()))
_STATISTICS = struct.Struct("<" + "".join(STATISTICS_ARGS.values()))


def step_args(work: Work, records: int, tiles: int, rows: int, groups: int = 0) -> bytes:
    """`struct StepArgs`.

    Args:
        records, tiles, rows, groups: addresses of the tables where the kernel runs; `groups` only for a table that
            counts on its device.
    """
    table, span, scaling = work.table, work.span, work.scaling
    counts = table.counts
    values = (
        records,
        tiles,
        rows,
        span.first_tile,
        span.last_tile - span.first_tile,
        table.first_head_tile,
        work.rule,
        work.zero_grads,
        table.turns_in(span),
        _address(work.statistics and work.statistics.signals),
        _address(scaling and scaling.grad_scale),
        _address(scaling and scaling.found_inf),
        groups,
        *(
            (0, 0, 0, 0)
            if counts is None
            else map(_address, (counts.steps, counts.ready, counts.waited, counts.arrived))
        ),
    )
    return _STEP.pack(*values)


def statistics_args(
    work: Work, limits: ClipLimits, records: int, tiles: int, rows: int, groups: int = 0
) -> bytes:
    """`struct StatisticsArgs`; tables as in `step_args`."""
    table, span = work.table, work.span
    values = (
        records,
        tiles,
        span.first_tile,
        span.last_tile - span.first_tile,
        table.first_head_tile,
        work.statistics.tile_sums.data_ptr(),
        work.statistics.signals.data_ptr(),
        limits.body,
        limits.head,
        limits.joint,
        table.turns_in(span),
        _address(work.scaling and work.scaling.grad_scale),
        rows,
        groups,
        0 if table.counts is None else table.counts.waited.data_ptr(),
    )
    return _STATISTICS.pack(*values)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
