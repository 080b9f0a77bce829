"""Tiles of parameters that are not float32 with float32 state and gradient: `csrc/cuda/low_precision.cu` in Triton.

FORMAT is a record's `format`, and above its first byte the dtype of its gradient: a launch compiles one branch for each
that its table has. `rule` is a constexpr where all rows share one, else what the row at hand says.
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
from .random_bits import random_bits, tile_stream
from .tables import (
    AMSGRAD,
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
    NUMEL,
    PARAM,
    RECORD_FIELDS,
    SGD,
    TURNS,
    UPDATE_FLAGS,
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
def _blocks(offset, start, count, PASS: tl.constexpr):
    """Return the blocks of a tile from `start` on; `count`: how many elements are left from the tile's offset on."""
    first = start + BLOCK * tl.arange(0, PASS // BLOCK)
    within = first[:, None] + tl.arange(0, BLOCK)[None, :]
    number = offset // BLOCK + start // BLOCK + tl.arange(0, PASS // BLOCK)
    return Blocks(
        Elements(offset + within, within < count), Elements(number, first < count), within
    )


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
    stream,
    blocks,
    FORMAT: tl.constexpr,
    MODE: tl.constexpr,
    FULL: tl.constexpr,
):
    """Update elements of one parameter.

    Args:
        words: of its record.
        grad_sum: the address of the sum of earlier gradients, 0 where there is none.
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
    alone = UPDATE_FLAGS & rule
    param, exp_avg, exp_avg_sq, maximum = apply_rule(
        alone, row, param, grad, exp_avg, exp_avg_sq, maximum
    )
    param = project(bounds[0], bounds[1], param)
    if (EMA & rule) != 0:
        ema = load(words[EMA_ADDRESS], elements, FULL)
        store(words[EMA_ADDRESS], elements, ema_update(row, param, ema), FULL)
    random = random_bits(stream, blocks.within.to(tl.uint32))
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
    offset,
    FORMAT: tl.constexpr,
    RULE: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    """As `update_tile`; `step`: the count of the coming step, int32, by which random numbers go."""
    DTYPE: tl.constexpr = FORMAT & 3
    words = load_words(record, RECORD_FIELDS)
    grad_sum = words[GRAD_SUM]
    count = words[NUMEL] - offset
    states = words[EXP_AVG] | words[EXP_AVG_SQ] | words[MAX_EXP_AVG_SQ] | words[EMA_ADDRESS]
    every = words[PARAM] | words[GRAD] | states | grad_sum | words[MASTER]
    full = (count >= TILE) & ((every & 15) == 0)
    if TURNS & MODE:
        full = full & (words[GRAD] != 0)
        grad_sum = tl.where(row[MEAN_WEIGHT] != 0, grad_sum, 0)
    low, high = row[LOW], row[HIGH]
    if DTYPE != FLOAT32:
        low, high = rounded_inside(low, DTYPE, True), rounded_inside(high, DTYPE, False)
    bounds = low, high
    stream = tile_stream(words[KEY], step, offset // TILE)
    if full:
        MASTER_WORD: tl.constexpr = (FORMAT >> 4) & 7
        IS_WIDE: tl.constexpr = (
            0
            if ((DTYPE != FLOAT32) and ((FORMAT >> 8) != FLOAT32) and (MASTER_WORD != MASTER32))
            else 1
        )
        CROWDED: tl.constexpr = ((EMA | AMSGRAD) & RULE) | (TURNS & MODE) | IS_WIDE
        IS_CODE: tl.constexpr = ((FORMAT >> 2) & 3) == STATE8
        PASS: tl.constexpr = (
            (CODES_PASS if CROWDED == 0 else HALVES_PASS) if IS_CODE else HALVES_PASS
        )
        for start in range(0, TILE, PASS):
            blocks = _blocks(offset, start, count, PASS)
            _update(
                words,
                row,
                rule,
                bounds,
                factor,
                unscale,
                grad_sum,
                stream,
                blocks,
                FORMAT,
                MODE,
                True,
            )
    else:
        for start in range(0, tl.minimum(count, TILE).to(tl.int32), RAGGED_PASS):
            blocks = _blocks(offset, start, count, RAGGED_PASS)
            _update(
                words,
                row,
                rule,
                bounds,
                factor,
                unscale,
                grad_sum,
                stream,
                blocks,
                FORMAT,
                MODE,
                False,
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
        _clear(grad, elements, DTYPE, FULL)


@triton.jit
def wait_low_precision_tile(
    record, unscale, adds, offset, DTYPE: tl.constexpr, MODE: tl.constexpr, TILE: tl.constexpr
):
    """As `wait_tile`, with gradients of a dtype."""
    grad = tl.load(record + GRAD)
    grad_sum = tl.load(record + GRAD_SUM)
    count = tl.load(record + NUMEL) - offset
    aligned = ((grad | grad_sum) & 15) == 0
    if TURNS & MODE:
        grad_sum = tl.where(adds, grad_sum, 0)
    if (count >= TILE) & aligned:
        for start in range(0, TILE, HALVES_PASS):
            elements = _blocks(offset, start, count, HALVES_PASS).elements
            _wait(unscale, grad, grad_sum, elements, DTYPE, MODE, True)
    else:
        for start in range(0, tl.minimum(count, TILE).to(tl.int32), RAGGED_PASS):
            elements = _blocks(offset, start, count, RAGGED_PASS).elements
            _wait(unscale, grad, grad_sum, elements, DTYPE, MODE, False)
