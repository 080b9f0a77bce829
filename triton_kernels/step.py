"""One launch for any number of groups: program i updates tile first_tile + i, whatever parameter it belongs to."""

import torch
import triton
import triton.language as tl

from .update_rule import AMSGRAD, MOMENTUM, SGD, adam_update, sgd_update

TILE_ELEMENTS = 4096
PART_ELEMENTS = 1024  # what the scalar path takes at a time, so that its code and registers stay small
PASS: tl.constexpr = tl.constexpr(1024)
NUM_WARPS = 8  # 16 elements per thread: four 128-bit accesses to each buffer in flight

MIXED_RULES: tl.constexpr = tl.constexpr(-1)

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

# every rule that exists, for the launch that mixes them (SF_FOR_EACH_RULE in csrc/tables.h)
RULES: tl.constexpr = tl.constexpr((0, 2, 4, 6, 1, 5, 9, 13, 25, 29))


@triton.jit
def _buffer(address, offset, FULL: tl.constexpr):
    """A buffer at a tile's offset; on the full-tile path known to be aligned to 128 bits."""
    pointer = address.to(tl.pointer_type(tl.float32))
    if FULL:
        # without the hint on the pointer after its cast Triton falls back to 32-bit accesses, and says nothing
        pointer = tl.multiple_of(pointer, 16)
    return pointer + offset


@triton.jit
def _update(row, param_at, grad_at, exp_avg_at, exp_avg_sq_at, max_exp_avg_sq_at, offset, index, mask, RULE: tl.constexpr, FULL: tl.constexpr):
    params = _buffer(param_at, offset, FULL) + index
    param = tl.load(params, mask=mask)
    grad = tl.load(_buffer(grad_at, offset, FULL) + index, mask=mask)
    if RULE & SGD:
        if RULE & MOMENTUM:
            buffers = _buffer(exp_avg_at, offset, FULL) + index
            param, momentum_buffer = sgd_update(row, param, grad, tl.load(buffers, mask=mask), RULE)
            tl.store(buffers, momentum_buffer, mask=mask)
        else:
            param, _ = sgd_update(row, param, grad, param, RULE)
    else:
        exp_avgs = _buffer(exp_avg_at, offset, FULL) + index
        exp_avg_sqs = _buffer(exp_avg_sq_at, offset, FULL) + index
        exp_avg = tl.load(exp_avgs, mask=mask)
        exp_avg_sq = tl.load(exp_avg_sqs, mask=mask)
        if RULE & AMSGRAD:
            maxima = _buffer(max_exp_avg_sq_at, offset, FULL) + index
            maximum = tl.load(maxima, mask=mask)
            param, exp_avg, exp_avg_sq, maximum = adam_update(row, param, grad, exp_avg, exp_avg_sq, maximum, RULE)
            tl.store(maxima, maximum, mask=mask)
        else:
            param, exp_avg, exp_avg_sq, _ = adam_update(row, param, grad, exp_avg, exp_avg_sq, exp_avg_sq, RULE)
        tl.store(exp_avgs, exp_avg, mask=mask)
        tl.store(exp_avg_sqs, exp_avg_sq, mask=mask)
    tl.store(params, param, mask=mask)


@triton.jit
def _update_tile(record, row, offset, RULE: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr):
    param_at = tl.load(record + PARAM)
    grad_at = tl.load(record + GRAD)
    exp_avg_at = tl.load(record + EXP_AVG)
    exp_avg_sq_at = tl.load(record + EXP_AVG_SQ)
    max_exp_avg_sq_at = tl.load(record + MAX_EXP_AVG_SQ)
    # vectors need every buffer that the rule touches on a 16-byte boundary; those it does not use are 0
    addresses = param_at | grad_at | exp_avg_at | exp_avg_sq_at | max_exp_avg_sq_at
    count = tl.load(record + NUMEL) - offset
    if (count >= TILE) & ((addresses & 15) == 0):
        # a full tile needs no mask; a mask would have to be known to be uniform over 16 bytes to keep wide accesses
        for start in tl.static_range(0, TILE, PASS):
            index = start + tl.arange(0, PASS)
            _update(row, param_at, grad_at, exp_avg_at, exp_avg_sq_at, max_exp_avg_sq_at, offset, index, None, RULE, True)
    else:
        for start in range(0, tl.minimum(count, TILE), PART):
            index = start + tl.arange(0, PART)
            _update(row, param_at, grad_at, exp_avg_at, exp_avg_sq_at, max_exp_avg_sq_at, offset, index, index < count, RULE, False)


@triton.jit(do_not_specialize=["first_tile"])
def step_kernel(records, tiles, rows, first_tile: tl.int64, RULE: tl.constexpr, TILE: tl.constexpr, PART: tl.constexpr):
    """Update one tile. RULE is one rule for the whole launch, or MIXED_RULES: then each program follows its row.

    Args:
        records: int64 pointer, RECORD_WORDS per parameter.
        tiles: int64 pointer, (record, offset) per tile.
        rows: float32 pointer, ROW_WORDS per row; word 0 is the rule, an int32.
        first_tile: index of program 0's tile.
    """
    tile = tiles + (first_tile + tl.program_id(0)) * TILE_WORDS
    record = records + tl.load(tile) * RECORD_WORDS
    offset = tl.multiple_of(tl.load(tile + 1), 16)
    if tl.load(record + GRAD) != 0:
        row = rows + tl.load(record + ROW) * ROW_WORDS
        if RULE == MIXED_RULES:
            rule = tl.load(row.to(tl.pointer_type(tl.int32)))
            for k in tl.static_range(len(RULES)):
                if rule == RULES[k]:
                    _update_tile(record, row, offset, RULES[k], TILE, PART)
        else:
            _update_tile(record, row, offset, RULE, TILE, PART)


def launch_step(
    records: torch.Tensor, tiles: torch.Tensor, rows: torch.Tensor, first_tile: int, num_tiles: int, rule: int
) -> None:
    """Enqueue the update of `num_tiles` tiles on the current stream.

    Args:
        records: int64 [parameters * 8], tiles: int64 [tiles * 2], rows: float32 [rows * 16], on one device.
    """
    step_kernel[(num_tiles,)](
        records,
        tiles,
        rows,
        first_tile,
        RULE=rule,
        TILE=TILE_ELEMENTS,
        PART=PART_ELEMENTS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
