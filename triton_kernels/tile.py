"""The update of one tile, which one program of a launch does: `csrc/cuda/step.cu` in Triton."""

import triton
import triton.language as tl

from .access import load_words, mask_where, pointers
from .tables import (
    AMSGRAD,
    EMA,
    EMA_ADDRESS,
    EXP_AVG,
    EXP_AVG_SQ,
    GRAD,
    GRAD_SUM,
    HIGH,
    LOW,
    MAX_EXP_AVG_SQ,
    MEAN_WEIGHT,
    MOMENTUM,
    PARAM,
    RECORD_FIELDS,
    SGD,
    TURNS,
    ZERO_GRADS,
)
from .update_rule import (
    adam_update,
    ema_update,
    mean_gradient,
    project,
    sgd_update,
)

# Elements that 8 warps update at a time, chosen by registers: with 8 elements per thread on the vector path four blocks
# of Adam fit on a multiprocessor, and at least three of a launch that mixes rules, each thread with 128 bytes in
# flight. With one more buffer fewer would fit: rules with a maximum or an average take half as many elements.
NUM_WARPS = 8
VECTOR_PASS: tl.constexpr = tl.constexpr(2048)
CROWDED_PASS: tl.constexpr = tl.constexpr(1024)
SCALAR_PASS: tl.constexpr = tl.constexpr(512)


@triton.jit
def _update(
    row,
    factor,
    unscale,
    words,
    grad_sum,
    index,
    mask,
    RULE: tl.constexpr,
    MODE: tl.constexpr,
    FULL: tl.constexpr,
):
    """Update elements of one parameter.

    Args:
        factor: what the gradient is multiplied by.
        unscale: what gradients are multiplied by before they are summed up, in MODE TURNS.
        words: of the parameter's record.
        grad_sum: the address of the sum of earlier gradients, 0 where there is none; in MODE TURNS.
        index: of the elements; mask: which of them exist.
    """
    params = pointers(words[PARAM], index, FULL)
    param = tl.load(params, mask=mask)
    grads = pointers(words[GRAD], index, FULL)
    if TURNS & MODE:
        if FULL:
            grad = tl.load(grads)
        else:
            # absent where earlier gradients alone move the parameter
            grad = tl.load(grads, mask=mask_where(mask, words[GRAD] != 0), other=0.0)
        if grad_sum != 0:
            grad_sums = pointers(grad_sum, index, FULL)
            grad = mean_gradient(row, tl.load(grad_sums, mask=mask), unscale * grad)
            tl.store(grad_sums, tl.zeros_like(grad), mask=mask)
    else:
        grad = tl.load(grads, mask=mask)
    if ZERO_GRADS & MODE:
        if FULL:
            tl.store(grads, tl.zeros_like(grad))
        else:
            tl.store(grads, tl.zeros_like(grad), mask=mask_where(mask, words[GRAD] != 0))
    grad = factor * grad
    if EMA & RULE:
        emas = pointers(words[EMA_ADDRESS], index, FULL)
        ema = tl.load(emas, mask=mask)
    if SGD & RULE:
        if MOMENTUM & RULE:
            buffers = pointers(words[EXP_AVG], index, FULL)
            momentum_buffer = tl.load(buffers, mask=mask)
            param, momentum_buffer = sgd_update(row, param, grad, momentum_buffer, RULE)
            tl.store(buffers, momentum_buffer, mask=mask)
        else:
            param, _ = sgd_update(row, param, grad, param, RULE)
    else:
        exp_avgs = pointers(words[EXP_AVG], index, FULL)
        exp_avg_sqs = pointers(words[EXP_AVG_SQ], index, FULL)
        exp_avg = tl.load(exp_avgs, mask=mask)
        exp_avg_sq = tl.load(exp_avg_sqs, mask=mask)
        if AMSGRAD & RULE:
            maxima = pointers(words[MAX_EXP_AVG_SQ], index, FULL)
            maximum = tl.load(maxima, mask=mask)
            param, exp_avg, exp_avg_sq, maximum = adam_update(
                row, param, grad, exp_avg, exp_avg_sq, maximum, RULE
            )
            tl.store(maxima, maximum, mask=mask)
        else:
            param, exp_avg, exp_avg_sq, _ = adam_update(
                row, param, grad, exp_avg, exp_avg_sq, exp_avg_sq, RULE
            )
        tl.store(exp_avgs, exp_avg, mask=mask)
        tl.store(exp_avg_sqs, exp_avg_sq, mask=mask)
    param = project(row[LOW], row[HIGH], param)
    if EMA & RULE:
        tl.store(emas, ema_update(row, param, ema), mask=mask)
    tl.store(params, param, mask=mask)


@triton.jit
def _wait(unscale, grad, grad_sum, index, mask, MODE: tl.constexpr, FULL: tl.constexpr):
    """Add elements of a gradient to the sum, where there is one, and clear them."""
    grads = pointers(grad, index, FULL)
    if TURNS & MODE:
        if grad_sum != 0:
            grad_sums = pointers(grad_sum, index, FULL)
            total = tl.load(grad_sums, mask=mask) + unscale * tl.load(grads, mask=mask)
            tl.store(grad_sums, total, mask=mask)
    if ZERO_GRADS & MODE:
        tl.store(grads, tl.zeros_like(index).to(tl.float32), mask=mask)


@triton.jit
def wait_tile(record, unscale, adds, offset, count, MODE: tl.constexpr, TILE: tl.constexpr):
    """A tile that does not move: its gradient is summed up, where it `adds`, and cleared."""
    grad = tl.load(record + GRAD)
    grad_sum = tl.load(record + GRAD_SUM)
    aligned = ((grad | grad_sum) & 15) == 0
    if TURNS & MODE:
        grad_sum = tl.where(adds, grad_sum, 0)
    if (count == TILE) & aligned:
        for start in tl.static_range(0, TILE, VECTOR_PASS):
            index = offset + (start + tl.arange(0, VECTOR_PASS))
            _wait(unscale, grad, grad_sum, index, None, MODE, True)
    else:
        for start in range(0, count, SCALAR_PASS):
            index = start + tl.arange(0, SCALAR_PASS)
            _wait(unscale, grad, grad_sum, offset + index, index < count, MODE, False)


@triton.jit
def update_tile(
    record,
    row,
    factor,
    unscale,
    offset,
    count,
    RULE: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    words = load_words(record, RECORD_FIELDS)
    grad_sum = words[GRAD_SUM]
    # vectors need every buffer that the rule touches on a 16-byte boundary; those it does not use are 0
    states = words[EXP_AVG] | words[EXP_AVG_SQ] | words[MAX_EXP_AVG_SQ] | words[EMA_ADDRESS]
    every = words[PARAM] | words[GRAD] | states | grad_sum
    full = (count == TILE) & ((every & 15) == 0)
    if TURNS & MODE:
        full = full & (words[GRAD] != 0)
        grad_sum = tl.where(row[MEAN_WEIGHT] != 0, grad_sum, 0)
    if full:
        # no mask here: one would have to be known to be uniform over 16 bytes to keep wide accesses
        if (EMA | AMSGRAD) & RULE:
            for start in tl.static_range(0, TILE, CROWDED_PASS):
                index = offset + (start + tl.arange(0, CROWDED_PASS))
                _update(row, factor, unscale, words, grad_sum, index, None, RULE, MODE, True)
        else:
            for start in tl.static_range(0, TILE, VECTOR_PASS):
                index = offset + (start + tl.arange(0, VECTOR_PASS))
                _update(row, factor, unscale, words, grad_sum, index, None, RULE, MODE, True)
    else:
        for start in range(0, count, SCALAR_PASS):
            index = start + tl.arange(0, SCALAR_PASS)
            inside = index < count
            _update(
                row, factor, unscale, words, grad_sum, offset + index, inside, RULE, MODE, False
            )


@triton.jit
def update_by_rule(
    record,
    row,
    row_words,
    factor,
    unscale,
    offset,
    count,
    RULES: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Update a tile by that one of RULES which its row, at the pointer `row_words`, names."""
    if len(RULES) == 1:
        update_tile(record, row, factor, unscale, offset, count, RULES[0], MODE, TILE)
    else:
        rule = tl.load(row_words.to(tl.pointer_type(tl.int32)))
        # the last rule first: in the other order a launch that mixes rules takes 70 registers for 64
        for k in tl.static_range(len(RULES) - 1, -1, -1):
            if rule == RULES[k]:
                update_tile(record, row, factor, unscale, offset, count, RULES[k], MODE, TILE)
