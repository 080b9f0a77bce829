"""The tables of csrc/tables.h as kernels read them, by word, and the flags of a launch.

The numbers come from the NumPy dtypes of stackelberg_fused/native/tables.py and from the rules of
stackelberg_fused/groups/rules.py. Here they are constants, because kernels may read no other global variables.
"""

import numpy as np
import triton.language as tl

from ..groups.rules import Rule
from ..native import tables

TILE_ELEMENTS = tables.TILE_ELEMENTS


def word(table: np.dtype, field: str) -> tl.constexpr:
    """Return the place of a field: the number to add to a pointer to numbers of the field's size."""
    dtype, offset = table.fields[field][:2]
    return tl.constexpr(offset // dtype.base.itemsize)


def words(table: np.dtype, size: int) -> tl.constexpr:
    """Return the distance of a table's entries, in numbers of this size."""
    return tl.constexpr(table.itemsize // size)


# flags of a launch: tasks beside the update
CLIPPED: tl.constexpr = tl.constexpr(1)
SCALED: tl.constexpr = tl.constexpr(2)
SKIPPABLE: tl.constexpr = tl.constexpr(4)
COUNTED: tl.constexpr = tl.constexpr(8)
TURNS: tl.constexpr = tl.constexpr(16)
ZERO_GRADS: tl.constexpr = tl.constexpr(32)
JOINT_SETS: tl.constexpr = tl.constexpr(64)
LOW_PRECISION: tl.constexpr = tl.constexpr(128)

# Flags of a rule. A flag stands left of `&`, because interpreted kernels get rules as plain ints, to whose right a
# constexpr cannot stand.
SGD: tl.constexpr = tl.constexpr(Rule.SGD.value)
AMSGRAD: tl.constexpr = tl.constexpr(Rule.AMSGRAD.value)
L2: tl.constexpr = tl.constexpr(Rule.L2.value)
MOMENTUM: tl.constexpr = tl.constexpr(Rule.MOMENTUM.value)
NESTEROV: tl.constexpr = tl.constexpr(Rule.NESTEROV.value)
EMA: tl.constexpr = tl.constexpr(Rule.EMA.value)
CAUTIOUS: tl.constexpr = tl.constexpr(Rule.CAUTIOUS.value)

# a record: int64
RECORD_WORDS: tl.constexpr = words(tables.RECORD, 8)
RECORD_FIELDS: tl.constexpr = word(tables.RECORD, "reserved")  # words in use
PARAM: tl.constexpr = word(tables.RECORD, "param")
GRAD: tl.constexpr = word(tables.RECORD, "grad")
EXP_AVG: tl.constexpr = word(tables.RECORD, "exp_avg")
EXP_AVG_SQ: tl.constexpr = word(tables.RECORD, "exp_avg_sq")
MAX_EXP_AVG_SQ: tl.constexpr = word(tables.RECORD, "max_exp_avg_sq")
NUMEL: tl.constexpr = word(tables.RECORD, "numel")
ROW: tl.constexpr = word(tables.RECORD, "row")
EMA_ADDRESS: tl.constexpr = word(tables.RECORD, "ema")
GRAD_SUM: tl.constexpr = word(tables.RECORD, "grad_sum")
SET: tl.constexpr = word(tables.RECORD, "set")
ROW_LENGTH: tl.constexpr = word(tables.RECORD, "row_length")
ROW_STRIDE: tl.constexpr = word(tables.RECORD, "row_stride")
FORMAT: tl.constexpr = word(tables.RECORD, "format")
GRAD_DTYPE: tl.constexpr = word(tables.RECORD, "grad_dtype")
KEY: tl.constexpr = word(tables.RECORD, "key")
MASTER: tl.constexpr = word(tables.RECORD, "master")
EXP_AVG_SCALE: tl.constexpr = word(tables.RECORD, "exp_avg_scale")
EXP_AVG_SQ_SCALE: tl.constexpr = word(tables.RECORD, "exp_avg_sq_scale")
MAX_EXP_AVG_SQ_SCALE: tl.constexpr = word(tables.RECORD, "max_exp_avg_sq_scale")
BLOCK_ROW: tl.constexpr = word(tables.RECORD, "block_row")
TILES: tl.constexpr = word(tables.RECORD, "tiles")

# a tile: its record's index and, in the upper half of the same int64, how many elements it has; then int64
TILE_WORDS: tl.constexpr = words(tables.TILE, 8)
TILE_RECORD: tl.constexpr = tl.constexpr(0xFFFFFFFF)
TILE_COUNT: tl.constexpr = tl.constexpr(32)
TILE_OFFSET: tl.constexpr = word(tables.TILE, "offset")
TILE_WHOLE: tl.constexpr = word(tables.TILE, "whole")

# a row: float32, but for the rule, the turn and the step, which are int32
ROW_WORDS: tl.constexpr = words(tables.ROW, 4)
GRAD_SIGN: tl.constexpr = word(tables.ROW, "grad_sign")
WEIGHT_DECAY: tl.constexpr = word(tables.ROW, "weight_decay")
PARAM_DECAY: tl.constexpr = word(tables.ROW, "param_decay")
LERP_WEIGHT: tl.constexpr = word(tables.ROW, "lerp_weight")
BETA2: tl.constexpr = word(tables.ROW, "beta2")
ONE_MINUS_BETA2: tl.constexpr = word(tables.ROW, "one_minus_beta2")
STEP_SIZE: tl.constexpr = word(tables.ROW, "step_size")
EPS: tl.constexpr = word(tables.ROW, "eps")
MOMENTUM_COEFFICIENT: tl.constexpr = word(tables.ROW, "momentum")
ONE_MINUS_DAMPENING: tl.constexpr = word(tables.ROW, "one_minus_dampening")
EMA_WEIGHT: tl.constexpr = word(tables.ROW, "ema_weight")
MEAN_WEIGHT: tl.constexpr = word(tables.ROW, "mean_weight")
LOW: tl.constexpr = word(tables.ROW, "low")
HIGH: tl.constexpr = word(tables.ROW, "high")
TURN: tl.constexpr = word(tables.ROW, "turn")
STEP: tl.constexpr = word(tables.ROW, "step")
WAITS: tl.constexpr = tl.constexpr(tables.WAITS)
HAS_SUM: tl.constexpr = tl.constexpr(tables.HAS_SUM)

# a group, from whose numbers the device computes scalars: float64, the last three int64
GROUP_WORDS: tl.constexpr = words(tables.GROUP, 8)
LR: tl.constexpr = word(tables.GROUP, "lr")
BETA1: tl.constexpr = word(tables.GROUP, "beta1")
GROUP_BETA2: tl.constexpr = word(tables.GROUP, "beta2")
GROUP_EPS: tl.constexpr = word(tables.GROUP, "eps")
DECAY: tl.constexpr = word(tables.GROUP, "decay")
LR_ADDRESS: tl.constexpr = word(tables.GROUP, "lr_address")
LR_IS_DOUBLE: tl.constexpr = word(tables.GROUP, "lr_is_double")
UPDATE_EVERY: tl.constexpr = word(tables.GROUP, "update_every")

# a joint set: int64, its numbers float64
JOINT_SET_WORDS: tl.constexpr = words(tables.JOINT_SET, 8)
KIND: tl.constexpr = word(tables.JOINT_SET, "kind")
SIZE: tl.constexpr = word(tables.JOINT_SET, "size")
SMALLEST: tl.constexpr = word(tables.JOINT_SET, "smallest")
LARGEST: tl.constexpr = word(tables.JOINT_SET, "largest")
FIRST_TILE: tl.constexpr = word(tables.JOINT_SET, "first_tile")
NUM_TILES: tl.constexpr = word(tables.JOINT_SET, "num_tiles")
BALL: tl.constexpr = tl.constexpr(tables.BALL)

# gradient statistics: float64, but for the factors, float32, and the count of blocks, int32
SUM_SQ: tl.constexpr = word(tables.GRADIENT_STATISTICS, "sum_sq")
NORM: tl.constexpr = word(tables.GRADIENT_STATISTICS, "norm")
TOTAL_NORM: tl.constexpr = word(tables.GRADIENT_STATISTICS, "total_norm")
FACTOR: tl.constexpr = word(tables.GRADIENT_STATISTICS, "factor")
BLOCKS_DONE: tl.constexpr = word(tables.GRADIENT_STATISTICS, "blocks_done")
