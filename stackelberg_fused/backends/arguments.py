"""The arguments of a launch, as csrc/tables.h lays them out."""

from __future__ import annotations

import struct

from torch import Tensor

from ..joint_sets import JointSets
from ..statistics import ClipLimits
from ..tables import PROJECT_ARGS, STATISTICS_ARGS, STEP_ARGS
from .base import Work

_STEP = struct.Struct("<" + "".join(STEP_ARGS.values()))
_PROJECT = struct.Struct("<" + "".join(PROJECT_ARGS.values()))
_STATISTICS = struct.Struct("<" + "".join(STATISTICS_ARGS.values()))


_NONE = (0, 0, 0, 0)


def step_args(
    work: Work, records: int, tiles: int, rows: int, groups: int = 0, *, sets: int = 0
) -> bytes:
    """`struct StepArgs`.

    Args:
        records, tiles, rows, groups: addresses of the tables where the kernel runs; `groups` only for a table that
            counts on its device.
        sets: of the joint sets', where there are any.
    """
    table, span, scaling = work.table, work.span, work.scaling
    counts, joint = table.counts, work.joint_sets
    return _STEP.pack(
        records,
        tiles,
        rows,
        span.first_tile,
        span.last_tile - span.first_tile,
        table.first_head_tile,
        work.rule,
        work.zero_grads,
        table.takes_turns and table.turns_in(span),
        0 if work.statistics is None else work.statistics.signals.data_ptr(),
        *(_NONE[:2] if scaling is None else map(_address, (scaling.grad_scale, scaling.found_inf))),
        groups,
        *(
            _NONE
            if counts is None
            else map(_address, (counts.steps, counts.ready, counts.waited, counts.arrived))
        ),
        sets,
        *(_NONE if joint is None else map(_address, _results(joint))),
    )


def project_args(work: Work, records: int, rows: int, sets: int, pieces: int) -> bytes:
    """`struct ProjectArgs`; tables as in `step_args`."""
    joint, span = work.joint_sets, work.span
    sums, factors, _, moved = map(_address, _results(joint))
    found_inf = _address(work.scaling and work.scaling.found_inf)
    pieces_of_span = joint.piece_range(span.first_slot, span.last_slot)
    return _PROJECT.pack(
        records, rows, sets, pieces, *pieces_of_span, sums, factors, moved, found_inf
    )


def _results(joint: JointSets) -> tuple[Tensor, ...]:
    return joint.sums, joint.factors, joint.tiles_done, joint.moved


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
