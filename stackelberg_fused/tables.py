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
GROUP = np.dtype([*((name, "<f8") for name in DOUBLES), ("reserved", "<f8", (3,))])
