"""What the tables of csrc/tables.h hold, by word, and what a launch is told to do with them."""

import triton.language as tl

TILE_ELEMENTS = 4096

MIXED_RULES: tl.constexpr = tl.constexpr(-1)

# what a launch does beside the update
CLIPPED: tl.constexpr = tl.constexpr(1)
SCALED: tl.constexpr = tl.constexpr(2)
SKIPPABLE: tl.constexpr = tl.constexpr(4)
COUNTED: tl.constexpr = tl.constexpr(8)
TURNS: tl.constexpr = tl.constexpr(16)
ZERO_GRADS: tl.constexpr = tl.constexpr(32)
JOINT_SETS: tl.constexpr = tl.constexpr(64)
LOW_PRECISION: tl.constexpr = tl.constexpr(128)

# words of struct Record, struct Tile and struct Row in csrc/tables.h
RECORD_WORDS: tl.constexpr = tl.constexpr(24)
PARAM: tl.constexpr = tl.constexpr(0)
GRAD: tl.constexpr = tl.constexpr(1)
EXP_AVG: tl.constexpr = tl.constexpr(2)
EXP_AVG_SQ: tl.constexpr = tl.constexpr(3)
MAX_EXP_AVG_SQ: tl.constexpr = tl.constexpr(4)
NUMEL: tl.constexpr = tl.constexpr(5)
ROW: tl.constexpr = tl.constexpr(6)
EMA_ADDRESS: tl.constexpr = tl.constexpr(7)
GRAD_SUM: tl.constexpr = tl.constexpr(8)
SET: tl.constexpr = tl.constexpr(9)
ROW_LENGTH: tl.constexpr = tl.constexpr(10)
ROW_STRIDE: tl.constexpr = tl.constexpr(11)
ROW_COUNT: tl.constexpr = tl.constexpr(12)
FORMAT: tl.constexpr = tl.constexpr(13)
GRAD_DTYPE: tl.constexpr = tl.constexpr(14)
KEY: tl.constexpr = tl.constexpr(15)
MASTER: tl.constexpr = tl.constexpr(16)
EXP_AVG_SCALE: tl.constexpr = tl.constexpr(17)
EXP_AVG_SQ_SCALE: tl.constexpr = tl.constexpr(18)
MAX_EXP_AVG_SQ_SCALE: tl.constexpr = tl.constexpr(19)
TILE_WORDS: tl.constexpr = tl.constexpr(2)
ROW_WORDS: tl.constexpr = tl.constexpr(20)

# words of struct JointSet
JOINT_SET_WORDS: tl.constexpr = tl.constexpr(6)
KIND: tl.constexpr = tl.constexpr(0)
SIZE: tl.constexpr = tl.constexpr(1)
SMALLEST: tl.constexpr = tl.constexpr(2)
LARGEST: tl.constexpr = tl.constexpr(3)
FIRST_TILE: tl.constexpr = tl.constexpr(4)
NUM_TILES: tl.constexpr = tl.constexpr(5)
BALL: tl.constexpr = tl.constexpr(1)
