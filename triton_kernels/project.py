"""Projections onto sets that many elements share: csrc/projection.h and csrc/cuda/project.cu in Triton.

The launch of the update reports its tiles (`report_tile`), and program i of the launch after it projects piece
first_piece + i.
"""

import torch
import triton
import triton.language as tl

from .access import pointers
from .cache_key import constants_of
from .entry_point import entry_point
from .exact_sum import (
    COPIES,
    KERNEL_WORDS,
    WORDS,
    add_squares,
    conclude_sum,
)
from .summation import LANES, fold
from .tables import (
    BALL,
    EMA_ADDRESS,
    EMA_WEIGHT,
    FIRST_TILE,
    JOINT_SET_WORDS,
    KIND,
    LARGEST,
    NUM_TILES,
    PARAM,
    RECORD_WORDS,
    ROW,
    ROW_LENGTH,
    ROW_STRIDE,
    ROW_WORDS,
    SET,
    SIZE,
    SMALLEST,
    TILE_COUNT,
    TILE_OFFSET,
    TILE_RECORD,
    TILE_WORDS,
)
from .tile import SCALAR_PASS
from .update_rule import interpolate

NUM_WARPS = 8


@triton.jit
def _float64(words, WORD: tl.constexpr):
    """A float64 of a joint set."""
    return tl.load((words + WORD).to(tl.pointer_type(tl.float64)))


@triton.jit
def _tiles_moved(tiles, moved, begin, end):
    lane = tl.arange(0, LANES)
    lanes = tl.zeros((LANES,), tl.float64)
    for start in range(begin, end, LANES):
        tile = start + lane
        index = tl.load(tiles + tile * TILE_WORDS, mask=tile < end, other=0) & TILE_RECORD
        has_moved = tl.load(moved + index, mask=tile < end, other=0, cache_modifier=".cg")
        lanes += has_moved.to(tl.float64)
    return fold(lanes)


@triton.jit
def report_tile(record, index, offset, count, has_moved, tiles, joint, TILE: tl.constexpr):
    """Write down what projecting needs to know of a tile; the last program of a ball computes its factor.

    Args:
        record: of the tile; index: its place among the records.
        has_moved: whether this launch moved it.
        joint: pointers: sets, set_sums, set_digits, set_factors, set_tiles_done, moved of struct StepArgs.
    """
    sets, set_sums, set_digits, set_factors, set_tiles_done, moved = joint
    # the same for all tiles of a record
    tl.store(moved + index, has_moved.to(tl.int32), mask=offset == 0)
    set_index = tl.load(record + SET) - 1
    words = sets + set_index * JOINT_SET_WORDS
    if tl.load(words + KIND) == BALL:
        # the program's stores before its loads
        tl.debug_barrier()
        sums = set_sums + set_index * COPIES * KERNEL_WORDS
        copy = sums + (tl.program_id(0) % COPIES) * KERNEL_WORDS
        for start in range(0, TILE, SCALAR_PASS):
            within = start + tl.arange(0, SCALAR_PASS)
            params = pointers(tl.load(record + PARAM), offset + within, False)
            add_squares(copy, tl.load(params, mask=within < count, other=0.0))
        # what was added, and whether it moved, before the count
        tl.debug_barrier()
        num_tiles = tl.load(words + NUM_TILES)
        if tl.atomic_add(set_tiles_done + set_index, 1, sem="acq_rel") == num_tiles - 1:
            begin = tl.load(words + FIRST_TILE)
            digits = set_digits + set_index * WORDS
            norm = tl.sqrt(conclude_sum(sums, KERNEL_WORDS, digits))
            stays = (norm <= _float64(words, LARGEST)) | ((norm < float("inf")) == 0)
            stays = stays | (_tiles_moved(tiles, moved, begin, begin + num_tiles) == 0)
            tl.store(set_factors + set_index, tl.where(stays, 1.0, _float64(words, SIZE) / norm))
            tl.store(set_tiles_done + set_index, 0)


@triton.jit
def _toward_zero(x):
    """float64 rounded to the float32 that is nearer to zero."""
    near = x.to(tl.float32)
    # sign and magnitude: one less is one nearer to zero
    nearer = (near.to(tl.int32, bitcast=True) - 1).to(tl.float32, bitcast=True)
    return tl.where(tl.abs(near.to(tl.float64)) > tl.abs(x), nearer, near)


@triton.jit
def _average(record, rows, index, mask, param):
    ema = tl.load(record + EMA_ADDRESS)
    if ema != 0:
        weight = tl.load(rows + tl.load(record + ROW) * ROW_WORDS + EMA_WEIGHT)
        emas = pointers(ema, index, False)
        tl.store(emas, interpolate(weight, tl.load(emas, mask=mask), param), mask=mask)


@triton.jit
def _project_tile(record, rows, factor, has_moved, offset, count):
    for start in range(0, count, SCALAR_PASS):
        within = start + tl.arange(0, SCALAR_PASS)
        mask = within < count
        params = pointers(tl.load(record + PARAM), offset + within, False)
        param = tl.load(params, mask=mask)
        if factor != 1.0:
            param = _toward_zero(param.to(tl.float64) * factor)
            tl.store(params, param, mask=mask)
        if has_moved:
            _average(record, rows, offset + within, mask, param)


@triton.jit
def _elements_of_row(record, start, j, stride):
    return pointers(tl.load(record + PARAM), start + j * stride, False)


@triton.jit
def _project_row(record, words, start, length, stride):
    total = _float64(words, SIZE)
    lane = tl.arange(0, LANES)
    lowest = tl.full((LANES,), float("inf"), tl.float64)
    highest = tl.full((LANES,), float("-inf"), tl.float64)
    sums = tl.zeros((LANES,), tl.float64)
    for first in range(0, length, LANES):
        mask = first + lane < length
        params = _elements_of_row(record, start, first + lane, stride)
        x = tl.load(params, mask=mask, other=0.0).to(tl.float64)
        lowest = tl.where(mask & (x < lowest), x, lowest)
        highest = tl.where(mask & (x > highest), x, highest)
        sums += x
    row_sum, smallest, largest = fold(sums), tl.min(lowest, 0), tl.max(highest, 0)
    inside = (_float64(words, SMALLEST) <= row_sum) & (row_sum <= _float64(words, LARGEST))
    stays = (inside & (smallest >= 0)) | (row_sum - row_sum != 0)
    if stays == 0:
        # Michelot 1986: see struct Threshold
        threshold = -total
        last_count = length.to(tl.float64) + 1.0
        narrows = length > 0
        while narrows:
            counts = tl.zeros((LANES,), tl.float64)
            sums = tl.zeros((LANES,), tl.float64)
            for first in range(0, length, LANES):
                mask = first + lane < length
                params = _elements_of_row(record, start, first + lane, stride)
                x = tl.load(params, mask=mask, other=0.0).to(tl.float64) - largest
                above = mask & (x > threshold)
                counts += tl.where(above, 1.0, 0.0)
                sums += tl.where(above, x, 0.0)
            count = fold(counts)
            narrows = count < last_count
            threshold = tl.where(narrows, (fold(sums) - total) / count, threshold)
            last_count = count
        sums = tl.zeros((LANES,), tl.float64)
        for first in range(0, length, LANES):
            mask = first + lane < length
            params = _elements_of_row(record, start, first + lane, stride)
            x = tl.load(params, mask=mask, other=0.0).to(tl.float64) - largest
            sums += tl.where(mask & (x > threshold), x - threshold, 0.0)
        scale = total / fold(sums)
        for first in range(0, length, LANES):
            mask = first + lane < length
            params = _elements_of_row(record, start, first + lane, stride)
            x = tl.load(params, mask=mask, other=0.0).to(tl.float64) - largest
            projected = _toward_zero(tl.where(x > threshold, x - threshold, 0.0) * scale)
            tl.store(params, projected, mask=mask)


@triton.jit
def _average_row(record, rows, start, length, stride):
    for first in range(0, length, LANES):
        j = first + tl.arange(0, LANES)
        param = tl.load(_elements_of_row(record, start, j, stride), mask=j < length)
        _average(record, rows, start + j * stride, j < length, param)


@entry_point
def project_kernel(
    records,
    rows,
    sets,
    pieces,
    first_piece: tl.int64,
    set_factors,
    moved,
    found_inf,
    SKIPPABLE: tl.constexpr,
    CONSTANTS: tl.constexpr,
):
    """Project one piece; arguments as in struct ProjectArgs, `found_inf` read where SKIPPABLE.

    CONSTANTS: see `constants_of`.
    """
    piece = pieces + (first_piece + tl.program_id(0)) * TILE_WORDS
    packed = tl.load(piece)
    index, count = packed & TILE_RECORD, packed >> TILE_COUNT
    offset = tl.load(piece + TILE_OFFSET)
    record = records + index * RECORD_WORDS
    set_index = tl.load(record + SET) - 1
    words = sets + set_index * JOINT_SET_WORDS
    has_moved = tl.load(moved + index) != 0
    is_ball = tl.load(words + KIND) == BALL
    taken = True
    if SKIPPABLE:
        taken = tl.load(found_inf) == 0
    if taken:
        if is_ball:
            _project_tile(record, rows, tl.load(set_factors + set_index), has_moved, offset, count)
        elif has_moved:
            length = tl.load(record + ROW_LENGTH)
            for row in range(offset, offset + count):
                # read for each row: kept from row to row, it would take registers
                stride = tl.load(record + ROW_STRIDE)
                start = row + row // stride * stride * (length - 1)
                _project_row(record, words, start, length, stride)
                # its elements may have been stored by other threads
                tl.debug_barrier()
                _average_row(record, rows, start, length, stride)


def launch_project(
    records: torch.Tensor,
    rows: torch.Tensor,
    sets: torch.Tensor,
    pieces: torch.Tensor,
    first_piece: int,
    num_pieces: int,
    set_factors: torch.Tensor,
    moved: torch.Tensor,
    found_inf: torch.Tensor | None,
) -> None:
    """Enqueue the projection of `num_pieces` pieces on the current stream, after `launch_step` with these sets.

    Args:
        records: int64 [parameters * 24], rows: float32 [rows * 20], sets: int64 [sets * 6], pieces: int64
            [pieces * 3], set_factors: float64 [sets], moved: int32 [parameters], found_inf: float32 [1]; on one device.
    """
    project_kernel[(num_pieces,)](
        records,
        rows,
        sets,
        pieces,
        first_piece,
        set_factors,
        moved,
        rows if found_inf is None else found_inf,
        SKIPPABLE=found_inf is not None,
        CONSTANTS=constants_of(project_kernel),
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
