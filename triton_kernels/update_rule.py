"""The update rule in Triton: step for step csrc/update_rule.h, rounded the same way.

`tl.fma`, division and square root are explicit, and every launch passes `enable_fp_fusion=False`, so that a GPU gives
the bits of the other native backends.
"""

import triton
import triton.language as tl

from .ieee import divide, square_root
from .tables import (
    AMSGRAD,
    BETA2,
    CAUTIOUS,
    EMA_WEIGHT,
    EPS,
    GRAD_SIGN,
    L2,
    LERP_WEIGHT,
    MEAN_WEIGHT,
    MOMENTUM,
    MOMENTUM_COEFFICIENT,
    NESTEROV,
    ONE_MINUS_BETA2,
    ONE_MINUS_DAMPENING,
    PARAM_DECAY,
    SGD,
    STEP_SIZE,
    WEIGHT_DECAY,
)


@triton.jit
def interpolate(weight, start, end):
    """From the nearer end: `weight` is that of `end` where it is below one half, else minus that of `start`."""
    return tl.fma(weight, end - start, tl.where(weight > 0, start, end))


@triton.jit
def adam_update(row, param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, RULE: tl.constexpr):
    """Adam and AdamW on a block. `row`: its scalars, by word; returns (param, exp_avg, exp_avg_sq, max_exp_avg_sq)."""
    # maximize: ascend by negating the gradient
    grad = row[GRAD_SIGN] * grad
    # l2 weight decay
    if L2 & RULE:
        grad = tl.fma(row[WEIGHT_DECAY], param, grad)
    # first moment
    exp_avg = interpolate(row[LERP_WEIGHT], exp_avg, grad)
    # second moment
    decayed = row[BETA2] * exp_avg_sq
    exp_avg_sq = tl.fma(row[ONE_MINUS_BETA2] * grad, grad, decayed)
    # amsgrad: running maximum; NaN stays NaN
    second_moment = exp_avg_sq
    if AMSGRAD & RULE:
        larger = (exp_avg_sq > max_exp_avg_sq) | (exp_avg_sq != exp_avg_sq)
        max_exp_avg_sq = tl.where(larger, exp_avg_sq, max_exp_avg_sq)
        second_moment = max_exp_avg_sq
    # update, with decoupled weight decay
    denom = square_root(second_moment) + row[EPS]
    update = row[STEP_SIZE] * divide(exp_avg, denom)
    param_decay = row[PARAM_DECAY]
    if CAUTIOUS & RULE:
        # cautious: a weight decays unless it and the update have opposite signs; their product might underflow
        grows = ((update > 0) & (param < 0)) | ((update < 0) & (param > 0))
        param_decay = tl.where(grows, 1.0, param_decay)
    # times -1.0: Triton's unary minus is 0 - x, which loses the sign of zero
    param = tl.fma(param_decay, param, -1.0 * update)
    return param, exp_avg, exp_avg_sq, max_exp_avg_sq


@triton.jit
def sgd_update(row, param, grad, momentum_buffer, RULE: tl.constexpr):
    """SGD on a block. `row`: its scalars, by word; returns (param, momentum_buffer)."""
    # maximize: ascend by negating the gradient
    grad = row[GRAD_SIGN] * grad
    # l2 weight decay
    if L2 & RULE:
        grad = tl.fma(row[WEIGHT_DECAY], param, grad)
    # momentum
    if MOMENTUM & RULE:
        momentum = row[MOMENTUM_COEFFICIENT]
        momentum_buffer = tl.fma(row[ONE_MINUS_DAMPENING], grad, momentum * momentum_buffer)
        # nesterov: look ahead along the momentum
        if NESTEROV & RULE:
            grad = tl.fma(momentum, momentum_buffer, grad)
        else:
            grad = momentum_buffer
    # update
    param = tl.fma(-1.0 * row[STEP_SIZE], grad, param)
    return param, momentum_buffer


@triton.jit
def _apply(row, param, grad, exp_avg, exp_avg_sq, maximum, RULE: tl.constexpr):
    if SGD & RULE:
        param, exp_avg = sgd_update(row, param, grad, exp_avg, RULE)
        return param, exp_avg, exp_avg_sq, maximum
    else:
        return adam_update(row, param, grad, exp_avg, exp_avg_sq, maximum, RULE)


@triton.jit
def apply_rule(rule, row, param, grad, exp_avg, exp_avg_sq, maximum, RULES: tl.constexpr):
    """Update a block by that one of RULES which `rule` is, perhaps known only when the kernel runs; without average.

    Returns (param, exp_avg, exp_avg_sq, maximum); those that the rule does not have as they were.
    """
    updated = param, exp_avg, exp_avg_sq, maximum
    # the last rule first, as in tile.py: in the other order a launch that mixes rules spills
    for k in tl.static_range(len(RULES) - 1, -1, -1):
        if rule == RULES[k]:
            updated = _apply(row, param, grad, exp_avg, exp_avg_sq, maximum, RULES[k])
    return updated


@triton.jit
def project(low, high, param):
    """The nearest point of a box on a block; NaN stays NaN, and where there is no box every value stays what it is."""
    return tl.where(param < low, low, tl.where(param > high, high, param))


@triton.jit
def ema_update(row, param, ema):
    """Average of the parameters on a block; returns ema."""
    return interpolate(row[EMA_WEIGHT], ema, param)


@triton.jit
def mean_gradient(row, grad_sum, grad):
    """Return the gradient of a group that moves now, after others of its gradients were summed up."""
    return row[MEAN_WEIGHT] * (grad_sum + grad)
