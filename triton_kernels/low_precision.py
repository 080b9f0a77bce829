"""Tiles of parameters that are not float32 with float32 state and gradient: `csrc/cuda/low_precision.cu` in Triton.

FORMAT is a record's `format`, and above its first byte the dtype of its gradient: a launch compiles one branch for each
that its table has. RULES are those of its rows, `rule` the one of the row at hand: a constexpr where all share it.
"""

import triton
import triton.language as tl

from .access import Elements, load, load_words, mask_where, store
from .codec import BLOCK
from .load_store import (
    FLOAT32,
    MASTER32,
    STATE8,
    Blocks,
    read_moments,
    read_weights,
    rounded_inside,
    widen,
    write_moments,
    write_weights,
)
from .random_bits import random_bits, random_bits_of_tile, stream_of
from .tables import (
    AMSGRAD,
    BLOCK_ROW,
    EMA,
    EMA_ADDRESS,
    EXP_AVG,
    EXP_AVG_SCALE,
    EXP_AVG_SQ,
    EXP_AVG_SQ_SCALE,
    GRAD,
    GRAD_SUM,
    HIGH,
    KEY,
    LOW,
    MASTER,
    MAX_EXP_AVG_SQ,
    MAX_EXP_AVG_SQ_SCALE,
    MEAN_WEIGHT,
    MOMENTUM,
    PARAM,
    RECORD_FIELDS,
    SGD,
    TILE_COUNT,
    TILE_OFFSET,
    TILE_WHOLE,
    TURNS,
    ZERO_GRADS,
)
from .update_rule import (
    apply_rule,
    ema_update,
    mean_gradient,
    project,
)

# Elements that 4 warps update at a time. A thread takes 8, or 16 where moments are codes of 8 bits, so that accesses to
# numbers of so few bits are 128 bits wide too. 16 elements may take so many registers that only two blocks of 4 warps
# fit on a multiprocessor; with more buffers than Adam's, or numbers of more than 16 bits, a thread takes 8 codes.
LOW_PRECISION_WARPS = 4
HALVES_PASS: tl.constexpr = tl.constexpr(1024)
CODES_PASS: tl.constexpr = tl.constexpr(2048)
RAGGED_PASS: tl.constexpr = tl.constexpr(512)


@triton.jit
def _full_blocks(offset, start, PASS: tl.constexpr):
    """Return blocks of a full tile from element `start` on."""
    offset = (offset >> 4) << 4  # as it is, but the compiler sees that it is divisible by 16
    first = start + BLOCK * tl.arange(0, PASS // BLOCK)
    within = first[:, None] + tl.arange(0, BLOCK)[None, :]
    number = offset // BLOCK + start // BLOCK + tl.arange(0, PASS // BLOCK)
    return Blocks(Elements(offset + within, within >= 0), Elements(number, first >= 0), within)


@triton.jit
def _ragged_blocks(offset, start, count, row, PASS: tl.constexpr):
    """Return blocks of a tile of `count` elements from block `start` on; none crosses a row, which has `row` elements.

    A tile has several rows, or a part of one; where `row` is 0, it is all of one.
    """
    length = tl.where((row > 0) & (row < count), row, count).to(tl.int32)
    blocks_per_row = (length + BLOCK - 1) // BLOCK
    block = start + tl.arange(0, PASS // BLOCK)
    in_row = (block % blocks_per_row * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
    within = (block // blocks_per_row * length)[:, None] + in_row
    exists = block < count // length * blocks_per_row
    # of the tile's first block
    number = offset // BLOCK
    if row > 0:
        number = offset // row * ((row + BLOCK - 1) // BLOCK) + offset % row // BLOCK
    mask = exists[:, None] & (in_row < length)
    return Blocks(Elements(offset + within, mask), Elements(number + block, exists), within)


@triton.jit
def _ragged_count(count, row):
    """Return how many blocks `_ragged_blocks` has of a tile."""
    length = tl.where((row > 0) & (row < count), row, count).to(tl.int32)
    return count.to(tl.int32) // length * ((length + BLOCK - 1) // BLOCK)


@triton.jit
def _is_full(tile, row, TILE: tl.constexpr):
    """Whether a tile has all of its elements, and begins where vectors, a stream and a block of codes may begin."""
    count = tl.load(tile) >> TILE_COUNT
    whole = tl.load(tile + TILE_WHOLE)
    aligned = tl.load(tile + TILE_OFFSET) % BLOCK == 0
    return (count == TILE) & aligned & (whole % TILE == 0) & (row == 0)


@triton.jit
def _clear(grad, elements, DTYPE: tl.constexpr, FULL: tl.constexpr):
    if DTYPE == FLOAT32:
        store(grad, elements, tl.zeros_like(elements.index).to(tl.float32), FULL)
    else:
        store(grad, elements, tl.zeros_like(elements.index).to(tl.uint16), FULL, tl.uint16)


@triton.jit
def _update(
    words,
    row,
    rule,
    bounds,
    factor,
    unscale,
    grad_sum,
    key,
    step,
    whole,
    blocks,
    FORMAT: tl.constexpr,
    RULES: tl.constexpr,
    MODE: tl.constexpr,
    FULL: tl.constexpr,
    TILE: tl.constexpr,
):
    """Update elements of one parameter.

    Args:
        words: of its record.
        grad_sum: the address of the sum of earlier gradients, 0 where there is none.
        key, step, whole: as in `random_bits_of_tile`.
    """
    STATE: tl.constexpr = (FORMAT >> 2) & 3
    GRADS: tl.constexpr = FORMAT >> 8
    grads = words[GRAD]
    elements = blocks.elements
    with_grad = elements
    if (TURNS & MODE) != 0:
        if not FULL:
            # absent where earlier gradients alone move the parameter
            mask = mask_where(elements.mask, grads != 0)
            with_grad = Elements(elements.index, mask)
    param = read_weights(words[PARAM], words[MASTER], elements, FORMAT, FULL)
    grad = widen(grads, with_grad, GRADS, FULL)
    if TURNS & MODE:
        if grad_sum != 0:
            total = load(grad_sum, elements, FULL)
            grad = mean_gradient(row, total, unscale * grad)
    if ((TURNS | ZERO_GRADS) & MODE) != 0:
        # zeros depend on nothing that was loaded, so that other warps may store them than load what they replace
        tl.debug_barrier()
    if TURNS & MODE:
        if grad_sum != 0:
            store(grad_sum, elements, tl.zeros_like(grad), FULL)
    if ZERO_GRADS & MODE:
        _clear(grads, with_grad, GRADS, FULL)
    grad = factor * grad
    exp_avg, exp_avg_sq, maximum = tl.zeros_like(grad), tl.zeros_like(grad), tl.zeros_like(grad)
    # a momentum buffer where there is one, and a maximum where there is one
    if ((SGD | MOMENTUM) & rule) != SGD:
        exp_avg = read_moments(words[EXP_AVG], words[EXP_AVG_SCALE], blocks, 15, STATE, FULL)
    if (SGD & rule) == 0:
        exp_avg_sq = read_moments(
            words[EXP_AVG_SQ], words[EXP_AVG_SQ_SCALE], blocks, 31, STATE, FULL
        )
    if ((SGD | AMSGRAD) & rule) == AMSGRAD:
        maximum = read_moments(
            words[MAX_EXP_AVG_SQ], words[MAX_EXP_AVG_SQ_SCALE], blocks, 31, STATE, FULL
        )
    param, exp_avg, exp_avg_sq, maximum = apply_rule(
        rule, row, param, grad, exp_avg, exp_avg_sq, maximum, RULES
    )
    param = project(bounds[0], bounds[1], param)
    if (EMA & rule) != 0:
        ema = load(words[EMA_ADDRESS], elements, FULL)
        store(words[EMA_ADDRESS], elements, ema_update(row, param, ema), FULL)
    if FULL:
        random = random_bits(stream_of(key, step, whole // TILE), blocks.within.to(tl.uint32))
    else:
        random = random_bits_of_tile(key, step, whole, blocks.within, TILE)
    # moments first: with weights before them ptxas keeps up to 70 registers more
    if ((SGD | MOMENTUM) & rule) != SGD:
        write_moments(
            words[EXP_AVG], words[EXP_AVG_SCALE], blocks, exp_avg, random, 15, STATE, FULL
        )
    if (SGD & rule) == 0:
        write_moments(
            words[EXP_AVG_SQ], words[EXP_AVG_SQ_SCALE], blocks, exp_avg_sq, random, 31, STATE, FULL
        )
    if ((SGD | AMSGRAD) & rule) == AMSGRAD:
        write_moments(
            words[MAX_EXP_AVG_SQ],
            words[MAX_EXP_AVG_SQ_SCALE],
            blocks,
            maximum,
            random,
            31,
            STATE,
            FULL,
        )
    write_weights(words[PARAM], words[MASTER], elements, param, random, FORMAT, FULL)


@triton.jit
def update_low_precision_tile(
    record,
    row,
    rule,
    step,
    factor,
    unscale,
    tile,
    FORMAT: tl.constexpr,
    RULES: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    """As `update_tile`; `step`: the count of the coming step, int32, by which random numbers go."""
    DTYPE: tl.constexpr = FORMAT & 3
    words = load_words(record, RECORD_FIELDS)
    grad_sum = words[GRAD_SUM]
    count, offset = tl.load(tile) >> TILE_COUNT, tl.load(tile + TILE_OFFSET)
    whole, block_row = tl.load(tile + TILE_WHOLE), words[BLOCK_ROW]
    states = words[EXP_AVG] | words[EXP_AVG_SQ] | words[MAX_EXP_AVG_SQ] | words[EMA_ADDRESS]
    every = words[PARAM] | words[GRAD] | states | grad_sum | words[MASTER]
    full = _is_full(tile, block_row, TILE) & ((every & 15) == 0)
    if TURNS & MODE:
        full = full & (words[GRAD] != 0)
        grad_sum = tl.where(row[MEAN_WEIGHT] != 0, grad_sum, 0)
    low, high = row[LOW], row[HIGH]
    if DTYPE != FLOAT32:
        low, high = rounded_inside(low, DTYPE, True), rounded_inside(high, DTYPE, False)
    bounds = low, high
    if full:
        MASTER_WORD: tl.constexpr = (FORMAT >> 4) & 7
        IS_WIDE: tl.constexpr = (
            0
            if ((DTYPE != FLOAT32) and ((FORMAT >> 8) != FLOAT32) and (MASTER_WORD != MASTER32))
            else 1
        )
        CROWDED: tl.constexpr = (
            ((EMA | AMSGRAD) & RULES[0]) | (len(RULES) - 1) | (TURNS & MODE) | IS_WIDE
        )
        IS_CODE: tl.constexpr = ((FORMAT >> 2) & 3) == STATE8
        PASS: tl.constexpr = (
            (CODES_PASS if CROWDED == 0 else HALVES_PASS) if IS_CODE else HALVES_PASS
        )
        for start in range(0, TILE, PASS):
            blocks = _full_blocks(offset, start, PASS)
            _update(
                words,
                row,
                rule,
                bounds,
                factor,
                unscale,
                grad_sum,
                words[KEY],
                step,
                whole,
                blocks,
                FORMAT,
                RULES,
                MODE,
                True,
                TILE,
            )
    else:
        for start in range(0, _ragged_count(count, block_row), RAGGED_PASS // BLOCK):
            blocks = _ragged_blocks(offset, start, count, block_row, RAGGED_PASS)
            _update(
                words,
                row,
                rule,
                bounds,
                factor,
                unscale,
                grad_sum,
                words[KEY],
                step,
                whole,
                blocks,
                FORMAT,
                RULES,
                MODE,
                False,
                TILE,
            )


@triton.jit
def _wait(
    unscale, grad, grad_sum, elements, DTYPE: tl.constexpr, MODE: tl.constexpr, FULL: tl.constexpr
):
    if TURNS & MODE:
        if grad_sum != 0:
            total = load(grad_sum, elements, FULL) + unscale * widen(grad, elements, DTYPE, FULL)
            store(grad_sum, elements, total, FULL)
            if ZERO_GRADS & MODE:
                tl.debug_barrier()  # as in `_update`
    if ZERO_GRADS & MODE:
        _clear(grad, elements, DTYPE, FULL)


@triton.jit
def wait_low_precision_tile(
    record, unscale, adds, tile, DTYPE: tl.constexpr, MODE: tl.constexpr, TILE: tl.constexpr
):
    """As `wait_tile`, with gradients of a dtype."""
    grad = tl.load(record + GRAD)
    grad_sum = tl.load(record + GRAD_SUM)
    count, offset = tl.load(tile) >> TILE_COUNT, tl.load(tile + TILE_OFFSET)
    aligned = ((grad | grad_sum) & 15) == 0
    row = grad & 0  # no blocks of codes are read here
    if TURNS & MODE:
        grad_sum = tl.where(adds, grad_sum, 0)
    if _is_full(tile, row, TILE) & aligned:
        for start in range(0, TILE, HALVES_PASS):
            elements = _full_blocks(offset, start, HALVES_PASS).elements
            _wait(unscale, grad, grad_sum, elements, DTYPE, MODE, True)
    else:
        for start in range(0, _ragged_count(count, row), RAGGED_PASS // BLOCK):
            elements = _ragged_blocks(offset, start, count, row, RAGGED_PASS).elements
            _wait(unscale, grad, grad_sum, elements, DTYPE, MODE, False)
