"""One launch for any number of groups: program i updates tile first_tile + i, whatever parameter it belongs to."""

from dataclasses import dataclass, fields

import torch
import triton
import triton.language as tl

from .row import GROUP_WORDS, arrive, complete_row, load_row
from .update_rule import AMSGRAD, L2, MOMENTUM, NESTEROV, SGD, adam_update, sgd_update

TILE_ELEMENTS = 4096
# What 8 warps take at a time, chosen by registers: with 8 elements per thread on the vector path Adam fits four blocks
# on a multiprocessor and a launch that mixes rules three, each thread with 128 bytes in flight.
NUM_WARPS = 8
VECTOR_PASS: tl.constexpr = tl.constexpr(2048)
SCALAR_PASS: tl.constexpr = tl.constexpr(512)

MIXED_RULES: tl.constexpr = tl.constexpr(-1)

# what a launch does beside the update
CLIPPED: tl.constexpr = tl.constexpr(1)
SCALED: tl.constexpr = tl.constexpr(2)
SKIPPABLE: tl.constexpr = tl.constexpr(4)
COUNTED: tl.constexpr = tl.constexpr(8)

# words of struct Record, struct Tile and struct Row in csrc/tables.h
RECORD_WORDS: tl.constexpr = tl.constexpr(8)
PARAM: tl.constexpr = tl.constexpr(0)
GRAD: tl.constexpr = tl.constexpr(1)
EXP_AVG: tl.constexpr = tl.constexpr(2)
EXP_AVG_SQ: tl.constexpr = tl.constexpr(3)
MAX_EXP_AVG_SQ: tl.constexpr = tl.constexpr(4)
NUMEL: tl.constexpr = tl.constexpr(5)
ROW: tl.constexpr = tl.constexpr(6)
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
def _update(row, factor, addresses, index, mask, RULE: tl.constexpr, FULL: tl.constexpr):
    """Update the elements `index` of one parameter; `addresses` are the record's, in its order."""
    params = _elements(addresses[0], index, FULL)
    param = tl.load(params, mask=mask)
    grad = factor * tl.load(_elements(addresses[1], index, FULL), mask=mask)
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
    tl.store(params, param, mask=mask)


@triton.jit
def _update_tile(record, row, factor, offset, RULE: tl.constexpr, TILE: tl.constexpr):
    param = tl.load(record + PARAM)
    grad = tl.load(record + GRAD)
    exp_avg = tl.load(record + EXP_AVG)
    exp_avg_sq = tl.load(record + EXP_AVG_SQ)
    max_exp_avg_sq = tl.load(record + MAX_EXP_AVG_SQ)
    addresses = (param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq)
    count = tl.load(record + NUMEL) - offset
    # vectors need every buffer that the rule touches on a 16-byte boundary; those it does not use are 0
    aligned = ((param | grad | exp_avg | exp_avg_sq | max_exp_avg_sq) & 15) == 0
    if (count >= TILE) & aligned:
        # no mask here: one would have to be known to be uniform over 16 bytes to keep wide accesses
        for start in tl.static_range(0, TILE, VECTOR_PASS):
            index = offset + (start + tl.arange(0, VECTOR_PASS))
            _update(row, factor, addresses, index, None, RULE, True)
    else:
        for start in range(0, tl.minimum(count, TILE), SCALAR_PASS):
            index = start + tl.arange(0, SCALAR_PASS)
            _update(row, factor, addresses, offset + index, index < count, RULE, False)


@triton.jit
def _update_by_rule(record, row, factor, offset, rule, TILE: tl.constexpr):
    """Every rule that exists: SF_FOR_EACH_RULE in csrc/tables.h."""
    if rule == 0:
        _update_tile(record, row, factor, offset, 0, TILE)
    elif rule == AMSGRAD:
        _update_tile(record, row, factor, offset, AMSGRAD, TILE)
    elif rule == L2:
        _update_tile(record, row, factor, offset, L2, TILE)
    elif rule == (AMSGRAD | L2):
        _update_tile(record, row, factor, offset, AMSGRAD | L2, TILE)
    elif rule == SGD:
        _update_tile(record, row, factor, offset, SGD, TILE)
    elif rule == (SGD | L2):
        _update_tile(record, row, factor, offset, SGD | L2, TILE)
    elif rule == (SGD | MOMENTUM):
        _update_tile(record, row, factor, offset, SGD | MOMENTUM, TILE)
    elif rule == (SGD | MOMENTUM | L2):
        _update_tile(record, row, factor, offset, SGD | MOMENTUM | L2, TILE)
    elif rule == (SGD | MOMENTUM | NESTEROV):
        _update_tile(record, row, factor, offset, SGD | MOMENTUM | NESTEROV, TILE)
    elif rule == (SGD | MOMENTUM | NESTEROV | L2):
        _update_tile(record, row, factor, offset, SGD | MOMENTUM | NESTEROV | L2, TILE)


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
        groups, steps, readiness, arrived: as in struct StepArgs, in MODE COUNTED.
    """
    t = first_tile + tl.program_id(0)
    tile = tiles + t * TILE_WORDS
    index = tl.load(tile)
    record = records + index * RECORD_WORDS
    # the hint belongs here: on the argument of a function that is inlined later it would be lost
    offset = tl.multiple_of(tl.load(tile + 1), 16)
    moves = tl.load(record + GRAD) != 0
    if SKIPPABLE & MODE:
        moves = moves & (tl.load(found_inf) == 0)
    if moves:
        at = tl.load(record + ROW)
        words = rows + at * ROW_WORDS
        if COUNTED & MODE:
            count = tl.load(steps + index)
            ready = tl.load(readiness + index)
            row = complete_row(words, groups + at * GROUP_WORDS, count, ready)
            tiles_of_it = (tl.load(record + NUMEL) + TILE - 1) // TILE
            arrive(steps, readiness, arrived, index, tiles_of_it, count)
        else:
            row = load_row(words)
        if CLIPPED & MODE:
            factor = tl.load(factors + (t >= first_head_tile).to(tl.int32))
        elif SCALED & MODE:
            factor = tl.div_rn(1.0, tl.load(grad_scale))
        else:
            factor = 1.0
        if RULE == MIXED_RULES:
            rule = tl.load(words.to(tl.pointer_type(tl.int32)))
            _update_by_rule(record, row, factor, offset, rule, TILE)
        else:
            _update_tile(record, row, factor, offset, RULE, TILE)


@dataclass(frozen=True)
class Extras:
    """What a launch takes beside its tables; all on their device, None where there is none.

    Attributes:
        factors: float32 [2]: what the gradients of body and head are multiplied by.
        grad_scale: float32 [1]: else, what they are divided by.
        found_inf: float32 [1]: where it is not 0 nothing moves.
        groups: float64 [groups * 8], of a table that counts steps on its device; then `rows` holds one row per group.
        steps, ready, arrived: float32, int32, int32 [parameters], likewise.
    """

    factors: torch.Tensor | None = None
    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    groups: torch.Tensor | None = None
    steps: torch.Tensor | None = None
    ready: torch.Tensor | None = None
    arrived: torch.Tensor | None = None

    @property
    def mode(self) -> int:
        mode = CLIPPED.value if self.factors is not None else 0
        if self.factors is None and self.grad_scale is not None:
            mode |= SCALED.value
        if self.found_inf is not None:
            mode |= SKIPPABLE.value
        return mode | (COUNTED.value if self.groups is not None else 0)


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
        records: int64 [parameters * 8], tiles: int64 [tiles * 2], rows: float32 [rows * 16], on one device.
    """
    given = (getattr(extras, field.name) for field in fields(extras))
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
