"""The arguments of a launch, as csrc/launch_args.h lays them out."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from torch import Tensor

from ..layout.part import Part
from ..layout.statistics import ClipLimits
from ..native.tables import PROJECT_ARGS, STATISTICS_ARGS, STEP_ARGS
from .base import Launch

_STEP = struct.Struct("<" + "".join(STEP_ARGS.values()))
_PROJECT = struct.Struct("<" + "".join(PROJECT_ARGS.values()))
_STATISTICS = struct.Struct("<" + "".join(STATISTICS_ARGS.values()))


_NONE = (0, 0, 0, 0, 0)


def step_args(launch: Launch, tables: Mapping[str, int]) -> bytes:
    """`struct StepArgs`.

    Args:
        tables: addresses where the kernel runs: of records, tiles and rows; of groups, for a table that counts on its
            device; of sets and pieces, where there are joint sets.
    """
    table, span, scaling = launch.table, launch.span, launch.scaling
    # isinstance, and the property of a launch, take twice as long
    first_head_tile = span.first_head_tile if type(span) is Part else table.first_head_tile
    counts, joint = table.counts, launch.joint_sets
    return _STEP.pack(
        tables["records"],
        tables["tiles"],
        tables["rows"],
        span.first_tile,
        span.last_tile - span.first_tile,
        first_head_tile,
        launch.rule,
        launch.zero_grads,
        table.takes_turns and table.turns_in(span.first_slot, span.last_slot),
        table.is_low_precision,
        0 if launch.statistics is None else launch.statistics.buffer.data_ptr(),
        *(_NONE[:2] if scaling is None else map(_address, (scaling.grad_scale, scaling.found_inf))),
        tables.get("groups", 0),
        *(
            _NONE[:4]
            if counts is None
            else map(_address, (counts.steps, counts.ready, counts.waited, counts.arrived))
        ),
        0 if joint is None else tables["sets"],
        *(_NONE if joint is None else map(_address, joint.results)),
    )


def project_args(launch: Launch, tables: Mapping[str, int]) -> bytes:
    """`struct ProjectArgs`; tables as in `step_args`."""
    span = launch.span
    addresses = [tables[name] for name in ("records", "rows", "sets", "pieces")]
    joint = launch.needed_joint_sets
    pieces = joint.piece_range(span.first_slot, span.last_slot)
    factors, moved = map(_address, (joint.factors, joint.moved))
    found_inf = 0 if launch.scaling is None else _address(launch.scaling.found_inf)
    return _PROJECT.pack(*addresses, *pieces, factors, moved, found_inf)


def statistics_args(launch: Launch, limits: ClipLimits, tables: Mapping[str, int]) -> bytes:
    """`struct StatisticsArgs`; tables as in `step_args`."""
    table, span, statistics = launch.table, launch.span, launch.needed_statistics
    values = (
        tables["records"],
        tables["tiles"],
        span.first_tile,
        span.last_tile - span.first_tile,
        launch.first_head_tile,
        statistics.sums.data_ptr(),
        statistics.digits.data_ptr(),
        statistics.buffer.data_ptr(),
        limits.body,
        limits.head,
        limits.joint,
        table.turns_in(span.first_slot, span.last_slot),
        0 if launch.scaling is None else _address(launch.scaling.grad_scale),
        tables["rows"],
        tables.get("groups", 0),
        0 if table.counts is None else table.counts.waited.data_ptr(),
        0 if launch.scaling is None else _address(launch.scaling.sought),
    )
    return _STATISTICS.pack(*values)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
