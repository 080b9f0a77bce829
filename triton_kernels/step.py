"""One launch for any number of groups: program i updates tile first_tile + i, whatever parameter it belongs to."""

from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl

from .row import GROUP_WORDS, arrive, complete_row, load_row, turn_of, waited_after
from .update_rule import (
    AMSGRAD,
    EMA,
    L2,
    MEAN_WEIGHT,
    MOMENTUM,
    NESTEROV,
    SGD,
    adam_update,
    ema_update,
    mean_gradient,
    sgd_update,
)

TILE_ELEMENTS = 4096
# What 8 warps take at a time, chosen by registers: with 8 elements per thread on the vector path Adam fits four blocks
# on a multiprocessor and a launch that mixes rules three, each thread with 128 bytes in flight. One buffer more, and
# it would be fewer: rules with a maximum or an average take half as much.
NUM_WARPS = 8
VECTOR_PASS: tl.constexpr = tl.constexpr(2048)
NARROW_PASS: tl.constexpr = tl.constexpr(1024)
SCALAR_PASS: tl.constexpr = tl.constexpr(512)

MIXED_RULES: tl.constexpr = tl.constexpr(-1)

# what a launch does beside the update
CLIPPED: tl.constexpr = tl.constexpr(1)
SCALED: tl.constexpr = tl.constexpr(2)
SKIPPABLE: tl.constexpr = tl.constexpr(4)
COUNTED: tl.constexpr = tl.constexpr(8)
TURNS: tl.constexpr = tl.constexpr(16)
ZERO_GRADS: tl.constexpr = tl.constexpr(32)

# words of struct Record, struct Tile and struct Row in csrc/tables.h
RECORD_WORDS: tl.constexpr = tl.constexpr(16)
PARAM: tl.constexpr = tl.constexpr(0)
GRAD: tl.constexpr = tl.constexpr(1)
EXP_AVG: tl.constexpr = tl.constexpr(2)
EXP_AVG_SQ: tl.constexpr = tl.constexpr(3)
MAX_EXP_AVG_SQ: tl.constexpr = tl.constexpr(4)
NUMEL: tl.constexpr = tl.constexpr(5)
ROW: tl.constexpr = tl.constexpr(6)
EMA_ADDRESS: tl.constexpr = tl.constexpr(7)
GRAD_SUM: tl.constexpr = tl.constexpr(8)
TILE_WORDS: tl.constexpr = tl.constexpr(2)
ROW_WORDS: tl.constexpr = tl.constexpr(16)


@triton.jit
def _elements(address, index, FULL: tl.constexpr):
    """Pointers to a buffer's elements; on the vector path the buffer is known to be aligned to 128 bits."""
    pointer = address.to(tl.pointer_type(tl.float32))
    if FULL:
        # without the hint on the pointer after its cast Triton falls back to 32-bit accesses, and says nothing
        pointer = tl.multiple_of(pointer, 16)
    return pointer + index


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
    params = _elements(addresses[0], index, FULL)
    param = tl.load(params, mask=mask)
    grads = _elements(addresses[1], index, FULL)
    if TURNS & MODE:
        if FULL:
            grad = tl.load(grads)
        else:
            # absent where earlier gradients alone move the parameter
            grad = tl.load(grads, mask=mask & (addresses[1] != 0), other=0.0)
        if addresses[6] != 0:
            grad_sums = _elements(addresses[6], index, FULL)
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
        emas = _elements(addresses[5], index, FULL)
        ema = tl.load(emas, mask=mask)
    if SGD & RULE:
        if MOMENTUM & RULE:
            buffers = _elements(addresses[2], index, FULL)
            momentum_buffer = tl.load(buffers, mask=mask)
            param, momentum_buffer = sgd_update(row, param, grad, momentum_buffer, RULE)
            tl.store(buffers, momentum_buffer, mask=mask)
        else:
            param, _ = sgd_update(row, param, grad, param, RULE)
    else:
        exp_avgs = _elements(addresses[2], index, FULL)
        exp_avg_sqs = _elements(addresses[3], index, FULL)
        exp_avg = tl.load(exp_avgs, mask=mask)
        exp_avg_sq = tl.load(exp_avg_sqs, mask=mask)
        if AMSGRAD & RULE:
            maxima = _elements(addresses[4], index, FULL)
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
    if EMA & RULE:
        tl.store(emas, ema_update(row, param, ema), mask=mask)
    tl.store(params, param, mask=mask)


@triton.jit
def _gather(unscale, grad, grad_sum, index, mask, MODE: tl.constexpr, FULL: tl.constexpr):
    """Add elements of a gradient to the sum, where there is one, and clear them."""
    grads = _elements(grad, index, FULL)
    if TURNS & MODE:
        if grad_sum != 0:
            grad_sums = _elements(grad_sum, index, FULL)
            total = tl.load(grad_sums, mask=mask) + unscale * tl.load(grads, mask=mask)
            tl.store(grad_sums, total, mask=mask)
    if ZERO_GRADS & MODE:
        tl.store(grads, tl.zeros_like(index).to(tl.float32), mask=mask)


@triton.jit
def _gather_tile(record, unscale, gathers, offset, MODE: tl.constexpr, TILE: tl.constexpr):
    grad = tl.load(record + GRAD)
    grad_sum = tl.load(record + GRAD_SUM)
    count = tl.load(record + NUMEL) - offset
    aligned = ((grad | grad_sum) & 15) == 0
    if TURNS & MODE:
        grad_sum = tl.where(gathers, grad_sum, 0)
    if (count >= TILE) & aligned:
        for start in tl.static_range(0, TILE, VECTOR_PASS):
            index = offset + (start + tl.arange(0, VECTOR_PASS))
            _gather(unscale, grad, grad_sum, index, None, MODE, True)
    else:
        for start in range(0, tl.minimum(count, TILE), SCALAR_PASS):
            index = start + tl.arange(0, SCALAR_PASS)
            _gather(unscale, grad, grad_sum, offset + index, index < count, MODE, False)


@triton.jit
def _update_tile(
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
            for start in tl.static_range(0, TILE, NARROW_PASS):
                index = offset + (start + tl.arange(0, NARROW_PASS))
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
def _update_with(
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
        _update_tile(record, row, factor, unscale, offset, MORE, MODE, TILE)
    elif rule == AMSGRAD:
        _update_tile(record, row, factor, unscale, offset, AMSGRAD | MORE, MODE, TILE)
    elif rule == L2:
        _update_tile(record, row, factor, unscale, offset, L2 | MORE, MODE, TILE)
    elif rule == (AMSGRAD | L2):
        _update_tile(record, row, factor, unscale, offset, AMSGRAD | L2 | MORE, MODE, TILE)
    elif rule == SGD:
        _update_tile(record, row, factor, unscale, offset, SGD | MORE, MODE, TILE)
    elif rule == (SGD | L2):
        _update_tile(record, row, factor, unscale, offset, SGD | L2 | MORE, MODE, TILE)
    elif rule == (SGD | MOMENTUM):
        _update_tile(record, row, factor, unscale, offset, SGD | MOMENTUM | MORE, MODE, TILE)
    elif rule == (SGD | MOMENTUM | L2):
        _update_tile(record, row, factor, unscale, offset, SGD | MOMENTUM | L2 | MORE, MODE, TILE)
    elif rule == (SGD | MOMENTUM | NESTEROV):
        _update_tile(
            record, row, factor, unscale, offset, SGD | MOMENTUM | NESTEROV | MORE, MODE, TILE
        )
    elif rule == (SGD | MOMENTUM | NESTEROV | L2):
        _update_tile(
            record, row, factor, unscale, offset, SGD | MOMENTUM | NESTEROV | L2 | MORE, MODE, TILE
        )


@triton.jit(do_not_specialize=["first_tile", "first_head_tile"])
def step_kernel(
    records,
    tiles,
    rows,
    first_tile: tl.int64,
    first_head_tile: tl.int64,
    factors,
    grad_scale,
    found_inf,
    groups,
    steps,
    readiness,
    waited,
    arrived,
    RULE: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Update one tile. RULE is one rule for all, or MIXED_RULES: then each program follows its row.

    Args:
        records: int64 pointer, RECORD_WORDS per parameter.
        tiles: int64 pointer, (record, offset) per tile.
        rows: float32 pointer, ROW_WORDS per row; word 0 is the rule, an int32.
        first_tile: index of program 0's tile; those from first_head_tile on are the head's.
        factors: float32 pointer: what the gradients of body and head are multiplied by, in MODE CLIPPED.
        grad_scale: float32 pointer: what they are divided by, in MODE SCALED.
        found_inf: float32 pointer: where it is not 0 nothing moves, in MODE SKIPPABLE.
        groups, steps, readiness, waited, arrived: as in struct StepArgs, in MODE COUNTED.
    """
    t = first_tile + tl.program_id(0)
    tile = tiles + t * TILE_WORDS
    index = tl.load(tile)
    record = records + index * RECORD_WORDS
    # the hint belongs here: on the argument of a function that is inlined later it would be lost
    offset = tl.multiple_of(tl.load(tile + 1), 16)
    at = tl.load(record + ROW)
    words = rows + at * ROW_WORDS
    has_grad = tl.load(record + GRAD) != 0
    moves = has_grad
    steps_on = has_grad  # whether counts go on, if only that of waiting
    gathers = False
    if TURNS & MODE:
        steps_on = tl.load(record + NUMEL) > 0
        old = 0.0
        if COUNTED & MODE:
            old = tl.load(waited + index)
        of_group = (groups + at * GROUP_WORDS).to(tl.pointer_type(tl.int64))
        waits, gathered = turn_of(words, of_group, old, COUNTED & MODE)
        sums = tl.load(words + MEAN_WEIGHT) != 0
        moves = (has_grad | (sums & gathered)) & (waits == 0)
        gathers = has_grad & sums & waits
    if SKIPPABLE & MODE:
        taken = tl.load(found_inf) == 0
        moves = moves & taken
        steps_on = steps_on & taken
        gathers = gathers & taken
    unscale = 1.0
    if SCALED & MODE:
        unscale = tl.div_rn(1.0, tl.load(grad_scale))
    if TURNS & MODE:
        if COUNTED & MODE:
            if steps_on & (moves == 0):
                if arrive(arrived, index, (tl.load(record + NUMEL) + TILE - 1) // TILE):
                    tl.store(waited + index, waited_after(old, waits, gathered | gathers))
    if moves:
        if COUNTED & MODE:
            count = tl.load(steps + index)
            ready = tl.load(readiness + index)
            row = complete_row(words, groups + at * GROUP_WORDS, count, ready)
            if arrive(arrived, index, (tl.load(record + NUMEL) + TILE - 1) // TILE):
                tl.store(steps + index, count + 1.0)
                tl.store(readiness + index, 1)
                if TURNS & MODE:
                    tl.store(waited + index, 0.0)
        else:
            row = load_row(words)
        factor = 1.0
        if CLIPPED & MODE:
            factor = tl.load(factors + (t >= first_head_tile).to(tl.int32))
        if SCALED & MODE:
            if TURNS & MODE:
                factor = factor * tl.where(row[MEAN_WEIGHT] != 0, 1.0, unscale)
            else:
                factor = factor * unscale
        if RULE == MIXED_RULES:
            rule = tl.load(words.to(tl.pointer_type(tl.int32)))
            if (rule & EMA) != 0:
                _update_with(record, row, factor, unscale, offset, rule ^ EMA, EMA, MODE, TILE)
            else:
                _update_with(record, row, factor, unscale, offset, rule, 0, MODE, TILE)
        else:
            _update_tile(record, row, factor, unscale, offset, RULE, MODE, TILE)
    elif ((TURNS | ZERO_GRADS) & MODE) != 0:
        if has_grad:
            _gather_tile(record, unscale, gathers, offset, MODE, TILE)


@dataclass(frozen=True)
class Extras:
    """What a launch takes beside its tables; all on their device, None where there is none.

    Attributes:
        factors: float32 [2]: what clips the gradients of body and head.
        grad_scale: float32 [1]: what they are divided by.
        found_inf: float32 [1]: where it is not 0 nothing moves.
        groups: float64 [groups * 8], of a table that counts steps on its device; then `rows` holds one row per group.
        steps, ready, waited, arrived: float32, int32, float32, int32 [parameters], likewise.
        takes_turns: whether some group does not move on every step.
        zero_grads: whether gradients are zero afterwards.
    """

    factors: torch.Tensor | None = None
    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    ready: torch.Tensor | None = None
    waited: torch.Tensor | None = None
    arrived: torch.Tensor | None = None
    takes_turns: bool = False
    zero_grads: bool = False

    @property
    def mode(self) -> int:
        flags = (
            (CLIPPED, self.factors is not None),
            (SCALED, self.grad_scale is not None),
            (SKIPPABLE, self.found_inf is not None),
            (COUNTED, self.groups is not None),
            (TURNS, self.takes_turns),
            (ZERO_GRADS, self.zero_grads),
        )
        return sum(flag.value for flag, is_set in flags if is_set)


def launch_step(
    records: torch.Tensor,
    tiles: torch.Tensor,
    rows: torch.Tensor,
    first_tile: int,
    num_tiles: int,
    first_head_tile: int,
    rule: int,
    extras: Extras = Extras(),
) -> None:
    """Enqueue the update of `num_tiles` tiles on the current stream.

    Args:
        records: int64 [parameters * 16], tiles: int64 [tiles * 2], rows: float32 [rows * 16], on one device.
    """
    given = (getattr(extras, field.name) for field in fields(extras)[:-2])
    step_kernel[(num_tiles,)](
        records,
        tiles,
        rows,
        first_tile,
        first_head_tile,
        # a pointer that the mode does not use may be any
        *(rows if tensor is None else tensor for tensor in given),
        RULE=rule,
        MODE=extras.mode,
        TILE=TILE_ELEMENTS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
