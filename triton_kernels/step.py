"""One launch for any number of groups: program i updates tile first_tile + i, whatever parameter it belongs to."""

import torch
import triton
import triton.language as tl

from .cache_key import constants_of
from .entry_point import entry_point
from .ieee import divide
from .launch_options import LaunchOptions
from .load_store import BFLOAT16, FLOAT16, FLOAT32
from .low_precision import LOW_PRECISION_WARPS, update_low_precision_tile, wait_low_precision_tile
from .project import report_tile
from .row import (
    arrive,
    complete_row,
    load_row,
    turn_of,
    waited_after,
)
from .tables import (
    CLIPPED,
    COUNTED,
    FORMAT,
    GRAD,
    GRAD_DTYPE,
    GROUP_WORDS,
    JOINT_SETS,
    LOW_PRECISION,
    MEAN_WEIGHT,
    NUMEL,
    RECORD_WORDS,
    ROW,
    ROW_WORDS,
    SCALED,
    SET,
    SKIPPABLE,
    STEP,
    TILE_COUNT,
    TILE_ELEMENTS,
    TILE_OFFSET,
    TILE_RECORD,
    TILE_WORDS,
    TILES,
    TURNS,
    ZERO_GRADS,
)
from .tile import (
    NUM_WARPS,
    update_by_rule,
    wait_tile,
)


@triton.jit
def _update_low_precision(
    record,
    row,
    rule,
    step,
    factor,
    unscale,
    tile,
    FORMATS: tl.constexpr,
    RULES: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
):
    """A branch for each of the formats that there are."""
    format = tl.load(record + FORMAT) | (tl.load(record + GRAD_DTYPE) << 8)
    for k in tl.static_range(len(FORMATS)):
        if format == FORMATS[k]:
            update_low_precision_tile(
                record, row, rule, step, factor, unscale, tile, FORMATS[k], RULES, MODE, TILE
            )


@triton.jit
def _wait_low_precision(record, unscale, adds, tile, MODE: tl.constexpr, TILE: tl.constexpr):
    dtype = tl.load(record + GRAD_DTYPE)
    if dtype == FLOAT32:
        wait_low_precision_tile(record, unscale, adds, tile, FLOAT32, MODE, TILE)
    elif dtype == BFLOAT16:
        wait_low_precision_tile(record, unscale, adds, tile, BFLOAT16, MODE, TILE)
    else:
        wait_low_precision_tile(record, unscale, adds, tile, FLOAT16, MODE, TILE)


@entry_point
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
    sets,
    set_sums,
    set_digits,
    set_factors,
    set_tiles_done,
    moved,
    RULES: tl.constexpr,
    MODE: tl.constexpr,
    FORMATS: tl.constexpr,
    TILE: tl.constexpr,
    CONSTANTS: tl.constexpr,
):
    """Update one tile, by the rule of its row.

    Args:
        records: int64 pointer, RECORD_WORDS per parameter.
        tiles: int64 pointer, TILE_WORDS per tile.
        rows: float32 pointer, ROW_WORDS per row; word 0 is the rule, an int32.
        first_tile: index of program 0's tile; those from first_head_tile on are the head's.
        factors: float32 pointer: what the gradients of body and head are multiplied by, in MODE CLIPPED.
        grad_scale: float32 pointer: what they are divided by, in MODE SCALED.
        found_inf: float32 pointer: where it is not 0 nothing moves, in MODE SKIPPABLE.
        groups, steps, readiness, waited, arrived: as in struct StepArgs, in MODE COUNTED.
        sets, set_sums, set_digits, set_factors, set_tiles_done, moved: likewise, in MODE JOINT_SETS.
        RULES: those that rows have; the code holds no other.
        FORMATS: those that records have, each with its gradient's dtype above its first byte, in MODE LOW_PRECISION.
        CONSTANTS: see `constants_of`.
    """
    tile_index = first_tile + tl.program_id(0)
    tile = tiles + tile_index * TILE_WORDS
    packed = tl.load(tile)
    index, count = packed & TILE_RECORD, packed >> TILE_COUNT
    record = records + index * RECORD_WORDS
    # the hint belongs here: on the argument of a function that is inlined later it would be lost
    offset = tl.multiple_of(tl.load(tile + TILE_OFFSET), 16)
    row_index = tl.load(record + ROW)
    row_words = rows + row_index * ROW_WORDS
    has_grad = tl.load(record + GRAD) != 0
    moves = has_grad
    counts_on = has_grad  # if only how long it has waited
    adds = False
    if TURNS & MODE:
        counts_on = tl.load(record + NUMEL) > 0
        waited_before = 0.0
        if COUNTED & MODE:
            waited_before = tl.load(waited + index)
        group = (groups + row_index * GROUP_WORDS).to(tl.pointer_type(tl.int64))
        waits, has_sum = turn_of(row_words, group, waited_before, COUNTED & MODE)
        sums = tl.load(row_words + MEAN_WEIGHT) != 0
        moves = (has_grad | (sums & has_sum)) & (waits == 0)
        adds = has_grad & sums & waits
    if SKIPPABLE & MODE:
        taken = tl.load(found_inf) == 0
        moves = moves & taken
        counts_on = counts_on & taken
        adds = adds & taken
    unscale = 1.0
    if SCALED & MODE:
        unscale = divide(1.0, tl.load(grad_scale))
    if TURNS & MODE:
        if COUNTED & MODE:
            if counts_on & (moves == 0):
                if arrive(arrived, index, tl.load(record + TILES)):
                    tl.store(waited + index, waited_after(waited_before, waits, has_sum | adds))
    if moves:
        if COUNTED & MODE:
            last_step = tl.load(steps + index)
            ready = tl.load(readiness + index)
            row = complete_row(row_words, groups + row_index * GROUP_WORDS, last_step, ready)
            step = last_step.to(tl.int32) + 1
            if arrive(arrived, index, tl.load(record + TILES)):
                tl.store(steps + index, last_step + 1.0)
                tl.store(readiness + index, 1)
                if TURNS & MODE:
                    tl.store(waited + index, 0.0)
        else:
            row = load_row(row_words)
            step = tl.load(row_words.to(tl.pointer_type(tl.int32)) + STEP)
        factor = 1.0
        if CLIPPED & MODE:
            factor = tl.load(factors + (tile_index >= first_head_tile).to(tl.int32))
        if SCALED & MODE:
            if TURNS & MODE:
                factor = factor * tl.where(row[MEAN_WEIGHT] != 0, 1.0, unscale)
            else:
                factor = factor * unscale
        if LOW_PRECISION & MODE:
            if len(RULES) == 1:
                _update_low_precision(
                    record, row, RULES[0], step, factor, unscale, tile, FORMATS, RULES, MODE, TILE
                )
            else:
                rule = tl.load(row_words.to(tl.pointer_type(tl.int32)))
                _update_low_precision(
                    record, row, rule, step, factor, unscale, tile, FORMATS, RULES, MODE, TILE
                )
        else:
            update_by_rule(
                record, row, row_words, factor, unscale, offset, count, RULES, MODE, TILE
            )
    elif ((TURNS | ZERO_GRADS) & MODE) != 0:
        if has_grad:
            if LOW_PRECISION & MODE:
                _wait_low_precision(record, unscale, adds, tile, MODE, TILE)
            else:
                wait_tile(record, unscale, adds, offset, count, MODE, TILE)
    if JOINT_SETS & MODE:
        # read again what would take registers until here
        packed = tl.load(tile)
        index, count = packed & TILE_RECORD, packed >> TILE_COUNT
        record = records + index * RECORD_WORDS
        offset = tl.load(tile + TILE_OFFSET)
        reports = tl.load(record + SET) != 0
        if SKIPPABLE & MODE:
            reports = reports & (tl.load(found_inf) == 0)
        if reports:
            joint = (sets, set_sums, set_digits, set_factors, set_tiles_done, moved)
            report_tile(record, index, offset, count, moves, tiles, joint, TILE)


def launch_step(
    records: torch.Tensor,
    tiles: torch.Tensor,
    rows: torch.Tensor,
    first_tile: int,
    num_tiles: int,
    first_head_tile: int,
    rules: tuple[int, ...],
    options: LaunchOptions,
) -> None:
    """Enqueue the update of `num_tiles` tiles on the current stream.

    Args:
        records: int64 [parameters * 24], tiles: int64 [tiles * 3], rows: float32 [rows * 20], on one device.
        rules: those that rows have, each once.
    """
    step_kernel[(num_tiles,)](
        records,
        tiles,
        rows,
        first_tile,
        first_head_tile,
        **options.pointers(rows),
        RULES=rules,
        MODE=options.mode,
        FORMATS=options.formats,
        TILE=TILE_ELEMENTS,
        CONSTANTS=constants_of(step_kernel),
        num_warps=LOW_PRECISION_WARPS if options.mode & LOW_PRECISION.value else NUM_WARPS,
        enable_fp_fusion=False,
    )
