"""What one program of a step does to its tile: `csrc/cuda/step.cu` in Triton."""

import triton
import triton.language as tl

from .access import elements
from .tables import (
    EMA_ADDRESS,
    EXP_AVG,
    EXP_AVG_SQ,
    GRAD,
    GRAD_SUM,
    MAX_EXP_AVG_SQ,
    NUMEL,
    PARAM,
    TURNS,
    ZERO_GRADS,
)
from .update_rule import (
    AMSGRAD,
    CAUTIOUS,
    EMA,
    HIGH,
    L2,
    LOW,
    MEAN_WEIGHT,
    MOMENTUM,
    NESTEROV,
    SGD,
    adam_update,
    ema_update,
    mean_gradient,
    project,
    sgd_update,
)

# What 8 warps take at a time, chosen by registers: with 8 elements per thread on the vector path Adam fits four blocks
# on a multiprocessor and a launch that mixes rules three, each thread with 128 bytes in flight. One buffer more, and
# it would be fewer: rules with a maximum or an average take half as much.
NUM_WARPS = 8
VECTOR_PASS: tl.constexpr = tl.constexpr(2048)
CROWDED_PASS: tl.constexpr = tl.constexpr(1024)
SCALAR_PASS: tl.constexpr = tl.constexpr(512)


@triton.jit
def _update(
    row,
    factor,
    unscale,
    addresses,
    index,
    mask,
    RULE: tl.constexpr,
    MODE: tl.constexpr,
    FULL: tl.constexpr,
):
    """Update the elements `index` of one parameter; `addresses`: PARAM to GRAD_SUM.

    Args:
        factor: what the gradient is multiplied by.
        unscale: what gradients are multiplied by before they are summed up, in MODE TURNS.
    """
    params = elements(addresses[0], index, FULL)
    param = tl.load(params, mask=mask)
    grads = elements(addresses[1], index, FULL)
    if TURNS & MODE:
        if FULL:
            grad = tl.load(grads)
        else:
            # absent where earlier gradients alone move the parameter
            grad = tl.load(grads, mask=mask & (addresses[1] != 0), other=0.0)
        if addresses[6] != 0:
            grad_sums = elements(addresses[6], index, FULL)
            grad = mean_gradient(row, tl.load(grad_sums, mask=mask), unscale * grad)
            tl.store(grad_sums, tl.zeros_like(grad), mask=mask)
    else:
        grad = tl.load(grads, mask=mask)
    if ZERO_GRADS & MODE:
        if FULL:
            tl.store(grads, tl.zeros_like(grad))
        else:
            tl.store(grads, tl.zeros_like(grad), mask=mask & (addresses[1] != 0))
    grad = factor * grad
    if EMA & RULE:
        emas = elements(addresses[5], index, FULL)
        ema = tl.load(emas, mask=mask)
    if SGD & RULE:
        if MOMENTUM & RULE:
            buffers = elements(addresses[2], index, FULL)
            momentum_buffer = tl.load(buffers, mask=mask)
            param, momentum_buffer = sgd_update(row, param, grad, momentum_buffer, RULE)
            tl.store(buffers, momentum_buffer, mask=mask)
        else:
            param, _ = sgd_update(row, param, grad, param, RULE)
    else:
        exp_avgs = elements(addresses[2], index, FULL)
        exp_avg_sqs = elements(addresses[3], index, FULL)
        exp_avg = tl.load(exp_avgs, mask=mask)
        exp_avg_sq = tl.load(exp_avg_sqs, mask=mask)
        if AMSGRAD & RULE:
            maxima = elements(addresses[4], index, FULL)
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
    grads = elements(grad, index, FULL)
    if TURNS & MODE:
        if grad_sum != 0:
            grad_sums = elements(grad_sum, index, FULL)
            total = tl.load(grad_sums, mask=mask) + unscale * tl.load(grads, mask=mask)
            tl.store(grad_sums, total, mask=mask)
    if ZERO_GRADS & MODE:
        tl.store(grads, tl.zeros_like(index).to(tl.float32), mask=mask)


@triton.jit
def wait_tile(record, unscale, adds, offset, MODE: tl.constexpr, TILE: tl.constexpr):
    """A tile that does not move: its gradient is summed up, where it `adds`, and cleared."""
    grad = tl.load(record + GRAD)
    grad_sum = tl.load(record + GRAD_SUM)
    count = tl.load(record + NUMEL) - offset
    aligned = ((grad | grad_sum) & 15) == 0
    if TURNS & MODE:
        grad_sum = tl.where(adds, grad_sum, 0)
    if (count >= TILE) & aligned:
        for start in tl.static_range(0, TILE, VECTOR_PASS):
            index = offset + (start + tl.arange(0, VECTOR_PASS))
            _wait(unscale, grad, grad_sum, index, None, MODE, True)
    else:
        for start in range(0, tl.minimum(count, TILE), SCALAR_PASS):
            index = start + tl.arange(0, SCALAR_PASS)
            _wait(unscale, grad, grad_sum, offset + index, index < count, MODE, False)


@triton.jit
def update_tile(
    record,
    row,
    factor,
    unscale,
    offset,
    RULE: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    param = tl.load(record + PARAM)
    grad = tl.load(record + GRAD)
    exp_avg = tl.load(record + EXP_AVG)
    exp_avg_sq = tl.load(record + EXP_AVG_SQ)
    max_exp_avg_sq = tl.load(record + MAX_EXP_AVG_SQ)
    ema = tl.load(record + EMA_ADDRESS)
    grad_sum = tl.load(record + GRAD_SUM)
    count = tl.load(record + NUMEL) - offset
    # vectors need every buffer that the rule touches on a 16-byte boundary; those it does not use are 0
    every = param | grad | exp_avg | exp_avg_sq | max_exp_avg_sq | ema | grad_sum
    full = (count >= TILE) & ((every & 15) == 0)
    if TURNS & MODE:
        full = full & (grad != 0)
        grad_sum = tl.where(row[MEAN_WEIGHT] != 0, grad_sum, 0)
    addresses = (param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, ema, grad_sum)
    if full:
        # no mask here: one would have to be known to be uniform over 16 bytes to keep wide accesses
        if (EMA | AMSGRAD) & RULE:
            for start in tl.static_range(0, TILE, CROWDED_PASS):
                index = offset + (start + tl.arange(0, CROWDED_PASS))
                _update(row, factor, unscale, addresses, index, None, RULE, MODE, True)
        else:
            for start in tl.static_range(0, TILE, VECTOR_PASS):
                index = offset + (start + tl.arange(0, VECTOR_PASS))
                _update(row, factor, unscale, addresses, index, None, RULE, MODE, True)
    else:
        for start in range(0, tl.minimum(count, TILE), SCALAR_PASS):
            index = start + tl.arange(0, SCALAR_PASS)
            inside = index < count
            _update(row, factor, unscale, addresses, offset + index, inside, RULE, MODE, False)


@triton.jit
def update_with(
    record,
    row,
    factor,
    unscale,
    offset,
    rule,
    MORE: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Every rule that exists, with the flags MORE: SF_FOR_EACH_RULE_WITH in csrc/tables.h."""
    if rule == 0:
        update_tile(record, row, factor, unscale, offset, MORE, MODE, TILE)
    elif rule == AMSGRAD:
        update_tile(record, row, factor, unscale, offset, AMSGRAD | MORE, MODE, TILE)
    elif rule == L2:
        update_tile(record, row, factor, unscale, offset, L2 | MORE, MODE, TILE)
    elif rule == (AMSGRAD | L2):
        update_tile(record, row, factor, unscale, offset, AMSGRAD | L2 | MORE, MODE, TILE)
    elif rule == CAUTIOUS:
        update_tile(record, row, factor, unscale, offset, CAUTIOUS | MORE, MODE, TILE)
    elif rule == (AMSGRAD | CAUTIOUS):
        update_tile(record, row, factor, unscale, offset, AMSGRAD | CAUTIOUS | MORE, MODE, TILE)
    elif rule == SGD:
        update_tile(record, row, factor, unscale, offset, SGD | MORE, MODE, TILE)
    elif rule == (SGD | L2):
        update_tile(record, row, factor, unscale, offset, SGD | L2 | MORE, MODE, TILE)
    elif rule == (SGD | MOMENTUM):
        update_tile(record, row, factor, unscale, offset, SGD | MOMENTUM | MORE, MODE, TILE)
    elif rule == (SGD | MOMENTUM | L2):
        update_tile(record, row, factor, unscale, offset, SGD | MOMENTUM | L2 | MORE, MODE, TILE)
    elif rule == (SGD | MOMENTUM | NESTEROV):
        update_tile(
            record, row, factor, unscale, offset, SGD | MOMENTUM | NESTEROV | MORE, MODE, TILE
        )
    elif rule == (SGD | MOMENTUM | NESTEROV | L2):
        update_tile(
            record, row, factor, unscale, offset, SGD | MOMENTUM | NESTEROV | L2 | MORE, MODE, TILE
        )
