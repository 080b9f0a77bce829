"""NumPy dtypes of the tables that every kernel reads: csrc/tables.h, field for field."""

from __future__ import annotations

import numpy as np

TILE_ELEMENTS = 4096
LARGEST_FLOAT = float(np.finfo(np.float32).max)  # what a scalar of a row can hold

_ADDRESSES_AND_INDICES = (
    "param",
    "grad",
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "numel",
    "row",
    "reserved",
)
RECORD = np.dtype([(name, "<i8") for name in _ADDRESSES_AND_INDICES])

_SCALARS = (
    "grad_sign",
    "weight_decay",
    "param_decay",
    "lerp_weight",
    "beta2",
    "one_minus_beta2",
    "step_size",
    "eps",
    "momentum",
    "one_minus_dampening",
)
ROW = np.dtype([("rule", "<i4"), *((name, "<f4") for name in _SCALARS), ("reserved", "<f4", (5,))])

DOUBLES = ("lr", "beta1", "beta2", "eps", "decay")
GROUP = np.dtype(
    [
        *((name, "<f8") for name in DOUBLES),
        *((name, "<i8") for name in ("lr_address", "lr_is_double", "reserved")),
    ]
)

SIGNALS = np.dtype(
    [
        ("sum_sq", "<f8", (2,)),
        ("norm", "<f8", (2,)),
        ("total_norm", "<f8"),
        ("factor", "<f4", (2,)),
        ("blocks_done", "<i4"),
        ("reserved", "<i4", (3,)),
    ]
)

# one launch: `first_tile` and `num_tiles` of the tiles, those from `first_head_tile` on the head's
STEP_ARGS = np.dtype(
    [
        *((name, "<i8") for name in ("records", "tiles", "rows")),
        *((name, "<i8") for name in ("first_tile", "num_tiles", "first_head_tile")),
        ("rule", "<i4"),
        ("padding", "<i4"),
        *((name, "<i8") for name in ("signals", "grad_scale", "found_inf")),
        *((name, "<i8") for name in ("groups", "steps", "ready", "arrived")),
    ]
)
STATISTICS_ARGS = np.dtype(
    [
        *((name, "<i8") for name in ("records", "tiles")),
        *((name, "<i8") for name in ("first_tile", "num_tiles", "first_head_tile")),
        *((name, "<i8") for name in ("tile_sums", "signals")),
        ("max_norm", "<f8", (2,)),
        ("joint", "<i4"),
        ("padding", "<i4"),
        ("grad_scale", "<i8"),
    ]
)
