"""The scalars of a row in Triton: read, or computed where step counts live on the device, as csrc/row.h does it."""

import triton
import triton.language as tl

from .access import load_words, replaced
from .tables import (
    BETA1,
    DECAY,
    EPS,
    GROUP_BETA2,
    GROUP_EPS,
    HAS_SUM,
    LR,
    LR_ADDRESS,
    LR_IS_DOUBLE,
    ONE_MINUS_DAMPENING,
    PARAM_DECAY,
    STEP_SIZE,
    TURN,
    UPDATE_EVERY,
    WAITS,
)


@triton.jit
def load_row(row):
    """Load the scalars of a complete row, by word: all that comes before the turn. Word 0, the rule, is no scalar."""
    return load_words(row, TURN)


@triton.jit
def _integer_power(base, exponent):
    """base ** exponent by binary exponentiation: multiplications only, in this order in every language."""
    result = tl.full((), 1.0, tl.float64)
    while exponent > 0:
        result = tl.where((exponent & 1) != 0, result * base, result)
        exponent = exponent >> 1
        base = tl.where(exponent > 0, base * base, base)
    return result


@triton.jit
def _rate(group):
    address = tl.load(group.to(tl.pointer_type(tl.int64)) + LR_ADDRESS)
    rate = tl.load(group + LR)
    if address != 0:
        if tl.load(group.to(tl.pointer_type(tl.int64)) + LR_IS_DOUBLE) != 0:
            rate = tl.load(address.to(tl.pointer_type(tl.float64)))
        else:
            rate = tl.load(address.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return rate


@triton.jit
def complete_row(row, group, count, ready):
    """Compute the scalars of a step, by word, from the row and the doubles of its group.

    Args:
        row: float32 pointer, group: float64 pointer.
        count: steps taken, float32.
        ready: int32; 0 where the step creates the momentum buffer.
    """
    lr = _rate(group)
    step = count.to(tl.int64) + 1
    bias_correction2_sqrt = tl.sqrt(1.0 - _integer_power(tl.load(group + GROUP_BETA2), step))
    factor = bias_correction2_sqrt / (1.0 - _integer_power(tl.load(group + BETA1), step))
    scalars = load_row(row)
    scalars = replaced(scalars, PARAM_DECAY, (1.0 - lr * tl.load(group + DECAY)).to(tl.float32))
    scalars = replaced(scalars, STEP_SIZE, (lr * factor).to(tl.float32))
    eps = tl.load(group + GROUP_EPS) * bias_correction2_sqrt
    scalars = replaced(scalars, EPS, eps.to(tl.float32))
    one_minus_dampening = tl.where(ready != 0, scalars[ONE_MINUS_DAMPENING], 1.0)
    return replaced(scalars, ONE_MINUS_DAMPENING, one_minus_dampening)


@triton.jit
def turn_of(row, group, waited, COUNTED: tl.constexpr):
    """Tell whether a parameter waits for its turn, and whether there is a sum of its earlier gradients (csrc/turn.h).

    Args:
        row: float32 pointer.
        group: int64 pointer, waited: float32, where step counts live on the device.
    """
    if COUNTED:
        count = waited.to(tl.int64)
        waits = count // 2 + 1 < tl.load(group + UPDATE_EVERY)
        has_sum = count % 2 != 0
    else:
        turn = tl.load(row.to(tl.pointer_type(tl.int32)) + TURN)
        waits = (WAITS & turn) != 0
        has_sum = (HAS_SUM & turn) != 0
    return waits, has_sum


@triton.jit
def waited_after(waited, waits, has_sum):
    longer = (waited.to(tl.int64) // 2 * 2 + 2 + has_sum.to(tl.int64)).to(tl.float32)
    return tl.where(waits, longer, 0.0)


@triton.jit
def arrive(arrived, index, tiles):
    """Count a program of a parameter in; return whether it is the last one, which takes the step."""
    tl.debug_barrier()  # every thread has read the counts
    is_last = tl.atomic_add(arrived + index, 1, sem="acq_rel") == tiles - 1
    if is_last:
        tl.store(arrived + index, 0)
    return is_last
