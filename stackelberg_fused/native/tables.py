"""NumPy dtypes of the tables that every kernel reads: csrc/tables.h and csrc/launch_args.h, field for field."""

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
    "ema",
    "grad_sum",
    "set",
    "row_length",
    "row_stride",
    "format",
    "grad_dtype",
    "key",
    "master",
    "exp_avg_scale",
    "exp_avg_sq_scale",
    "max_exp_avg_sq_scale",
    "block_row",
    "tiles",
)
RECORD = np.dtype([*((name, "<i8") for name in _ADDRESSES_AND_INDICES), ("reserved", "<i8", (3,))])
TILE = np.dtype([("record", "<i4"), ("count", "<i4"), ("offset", "<i8"), ("whole", "<i8")])

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
    "ema_weight",
    "mean_weight",
    "low",
    "high",
)
WAITS, HAS_SUM = 1, 2  # flags of a row's `turn`
ROW = np.dtype(
    [
        ("rule", "<i4"),
        *((name, "<f4") for name in _SCALARS),
        ("turn", "<i4"),
        ("step", "<i4"),
        ("reserved", "<i4", (3,)),
    ]
)

DOUBLES = ("lr", "beta1", "beta2", "eps", "decay")
GROUP = np.dtype(
    [
        *((name, "<f8") for name in DOUBLES),
        *((name, "<i8") for name in ("lr_address", "lr_is_double", "update_every")),
    ]
)

BALL, SIMPLEX = 1, 2  # kinds of a joint set
JOINT_SET = np.dtype(
    [
        ("kind", "<i8"),
        *((name, "<f8") for name in ("size", "smallest", "largest")),
        *((name, "<i8") for name in ("first_tile", "num_tiles")),
    ]
)

GRADIENT_STATISTICS = np.dtype(
    [
        ("sum_sq", "<f8", (2,)),
        ("norm", "<f8", (2,)),
        ("total_norm", "<f8"),
        ("factor", "<f4", (2,)),
        ("blocks_done", "<i4"),
        ("reserved", "<i4", (3,)),
    ]
)

# The arguments of a launch (csrc/launch_args.h). They are new for each launch, so `struct` packs them: it takes a tenth
# of NumPy's time.
STEP_ARGS = {
    **dict.fromkeys(("records", "tiles", "rows"), "q"),
    **dict.fromkeys(("first_tile", "num_tiles", "first_head_tile"), "q"),
    **dict.fromkeys(("rule", "zero_grads"), "i"),
    **dict.fromkeys(("takes_turns", "is_low_precision"), "i"),
    **dict.fromkeys(("statistics", "grad_scale", "found_inf"), "q"),
    **dict.fromkeys(("groups", "steps", "ready", "waited", "arrived"), "q"),
    **dict.fromkeys(
        ("sets", "set_sums", "set_digits", "set_factors", "set_tiles_done", "moved"), "q"
    ),
}
PROJECT_ARGS = {
    **dict.fromkeys(("records", "rows", "sets", "pieces"), "q"),
    **dict.fromkeys(("first_piece", "num_pieces"), "q"),
    **dict.fromkeys(("set_factors", "moved", "found_inf"), "q"),
}
STATISTICS_ARGS = {
    **dict.fromkeys(("records", "tiles"), "q"),
    **dict.fromkeys(("first_tile", "num_tiles", "first_head_tile"), "q"),
    **dict.fromkeys(("sums", "digits", "statistics"), "q"),
    "max_norm": "2d",
    **dict.fromkeys(("joint", "takes_turns"), "i"),
    **dict.fromkeys(("grad_scale", "rows", "groups", "waited", "found_inf"), "q"),
}
