"""Gradient statistics in one launch, in the order of csrc/summation.h: the bits of the other native backends.

Program i sums up tile first_tile + i; the one that is done last adds up the tiles.
"""

import torch
import triton
import triton.language as tl

from .step import GRAD, NUMEL, RECORD_WORDS, TILE_ELEMENTS, TILE_WORDS, _elements

NUM_WARPS = 8
LANE_BITS: tl.constexpr = tl.constexpr(8)
LANES: tl.constexpr = tl.constexpr(256)

# words of struct Signals in csrc/tables.h: float64, float32 and int32 ones
SUM_SQ: tl.constexpr = tl.constexpr(0)
NORM: tl.constexpr = tl.constexpr(2)
TOTAL_NORM: tl.constexpr = tl.constexpr(4)
FACTOR: tl.constexpr = tl.constexpr(10)
BLOCKS_DONE: tl.constexpr = tl.constexpr(12)


@triton.jit
def _fold(lanes):
    """The upper half of the lanes onto the lower, until one is left: a sum of two has no order of its own."""
    for bit in tl.static_range(1, LANE_BITS + 1):
        lanes = tl.sum(tl.reshape(lanes, (2, LANES >> bit)), 0)
    return tl.sum(lanes, 0)


@triton.jit
def _parts(address, offset, count, start, FULL: tl.constexpr):
    """Squares of the 4 * LANES elements from `start` on, float64."""
    within = start + tl.arange(0, 4 * LANES)
    if FULL:
        x = tl.load(_elements(address, offset + within, True))
    else:
        x = tl.load(_elements(address, offset + within, False), mask=within < count, other=0.0)
    wide = x.to(tl.float64)
    return wide * wide


@triton.jit
def _tile_sum(address, offset, count, FULL: tl.constexpr, TILE: tl.constexpr):
    parts = _parts(address, offset, count, 0, FULL)
    for start in tl.static_range(4 * LANES, TILE, 4 * LANES):
        parts += _parts(address, offset, count, start, FULL)
    # (0 + 2) + (1 + 3)
    pairs = tl.sum(tl.reshape(parts, (LANES, 2, 2)), 1)
    return _fold(tl.sum(pairs, 1))


@triton.jit
def _player_sum(sums, begin, end):
    lane = tl.arange(0, LANES)
    lanes = tl.zeros((LANES,), tl.float64)
    for start in range(begin, end, LANES):
        # past the first-level cache, which other programs' stores do not reach
        at = start + lane
        lanes += tl.load(sums + at, mask=at < end, other=0.0, cache_modifier=".cg")
    return _fold(lanes)


@triton.jit
def _clip_factor(norm, max_norm):
    factor = max_norm / (norm + 1e-6)
    clips = ((factor < 1.0) | (factor != factor)) & (max_norm != float("inf"))
    return tl.where(clips, factor, 1.0)


@triton.jit(do_not_specialize=["first_tile", "num_tiles", "first_head_tile"])
def statistics_kernel(
    records,
    tiles,
    first_tile: tl.int64,
    num_tiles: tl.int64,
    first_head_tile: tl.int64,
    tile_sums,
    signals,
    limits,
    grad_scale,
    JOINT: tl.constexpr,
    SCALED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sum up one tile.

    Args:
        records, tiles: as in `step_kernel`.
        first_tile, num_tiles: the tiles of the launch; those from first_head_tile on are the head's.
        tile_sums: float64 pointer, one per tile of the table.
        signals: float64 pointer to struct Signals.
        limits: float64 pointer: largest norms of body and head, where JOINT of both together.
        grad_scale: float32 pointer: of the loss, where SCALED.
    """
    t = first_tile + tl.program_id(0)
    record = records + tl.load(tiles + t * TILE_WORDS) * RECORD_WORDS
    offset = tl.multiple_of(tl.load(tiles + t * TILE_WORDS + 1), 16)
    address = tl.load(record + GRAD)
    count = tl.load(record + NUMEL) - offset
    if address == 0:
        # absent: adds nothing, and its program still counts as done
        tl.store(tile_sums + t, 0.0)
    elif (count >= TILE) & ((address & 15) == 0):
        tl.store(tile_sums + t, _tile_sum(address, offset, count, True, TILE))
    else:
        tl.store(tile_sums + t, _tile_sum(address, offset, count, False, TILE))
    # the sum before the count, by whichever thread stored it
    tl.debug_barrier()
    blocks_done = signals.to(tl.pointer_type(tl.int32)) + BLOCKS_DONE
    if tl.atomic_add(blocks_done, 1, sem="acq_rel") == num_tiles - 1:
        end = first_tile + num_tiles
        split = tl.minimum(tl.maximum(first_head_tile, first_tile), end)
        body = _player_sum(tile_sums, first_tile, split)
        head = _player_sum(tile_sums, split, end)
        unscale = tl.full((), 1.0, tl.float64)
        if SCALED:
            unscale = unscale / tl.load(grad_scale).to(tl.float64)
        body_norm, head_norm = tl.sqrt(body) * unscale, tl.sqrt(head) * unscale
        total_norm = tl.sqrt(body + head) * unscale
        tl.store(signals + SUM_SQ, body)
        tl.store(signals + SUM_SQ + 1, head)
        tl.store(signals + NORM, body_norm)
        tl.store(signals + NORM + 1, head_norm)
        tl.store(signals + TOTAL_NORM, total_norm)
        if JOINT:
            body_norm, head_norm = total_norm, total_norm
        factors = signals.to(tl.pointer_type(tl.float32)) + FACTOR
        body_factor = _clip_factor(body_norm, tl.load(limits)) * unscale
        head_factor = _clip_factor(head_norm, tl.load(limits + 1)) * unscale
        tl.store(factors, body_factor.to(tl.float32))
        tl.store(factors + 1, head_factor.to(tl.float32))
        tl.store(blocks_done, 0)


def launch_statistics(
    records: torch.Tensor,
    tiles: torch.Tensor,
    first_tile: int,
    num_tiles: int,
    first_head_tile: int,
    tile_sums: torch.Tensor,
    signals: torch.Tensor,
    limits: torch.Tensor,
    joint: bool,
    grad_scale: torch.Tensor | None = None,
) -> None:
    """Enqueue the statistics of the gradients of `num_tiles` tiles on the current stream.

    Args:
        records: int64 [parameters * 8], tiles: int64 [tiles * 2], tile_sums: float64 [tiles], signals: float64 [8],
            limits: float64 [2], grad_scale: float32 [1]; on one device.
    """
    statistics_kernel[(num_tiles,)](
        records,
        tiles,
        first_tile,
        num_tiles,
        first_head_tile,
        tile_sums,
        signals,
        limits,
        limits if grad_scale is None else grad_scale,
        JOINT=joint,
        SCALED=grad_scale is not None,
        TILE=TILE_ELEMENTS,
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
