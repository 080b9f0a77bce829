"""Gradient statistics in one launch, of the same bits as on the other backends, because sums are exact.

Program i adds tile first_tile + i to one of the copies of its player's sum; the one that is done last adds those up.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .access import Elements, load, mask_where
from .cache_key import constants_of
from .entry_point import entry_point
from .exact_sum import (
    COPIES,
    KERNEL_WORDS,
    WORDS,
    add_squares,
    conclude_sum,
)
from .ieee import divide
from .launch_options import LaunchOptions
from .load_store import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    widen,
)
from .row import turn_of
from .tables import (
    BLOCKS_DONE,
    COUNTED,
    FACTOR,
    GRAD,
    GRAD_DTYPE,
    GRAD_SUM,
    GROUP_WORDS,
    LOW_PRECISION,
    MEAN_WEIGHT,
    NORM,
    RECORD_WORDS,
    ROW,
    ROW_WORDS,
    SCALED,
    SUM_SQ,
    TILE_COUNT,
    TILE_ELEMENTS,
    TILE_OFFSET,
    TILE_RECORD,
    TILE_WORDS,
    TOTAL_NORM,
    TURNS,
)

NUM_WARPS = 8
# of the step's modes, those in which its gradients' statistics differ
STATISTICS_MODES = SCALED.value | TURNS.value | COUNTED.value | LOW_PRECISION.value


class Gradient(NamedTuple):
    """Return the gradient that a parameter moves by.

    Attributes:
        address, sum_address: of its gradient and of the sum of earlier ones.
        unscale: what the former is multiplied by before the sum of both is by mean_weight.
    """

    address: tl.tensor
    sum_address: tl.tensor
    unscale: tl.tensor
    mean_weight: tl.tensor


@triton.jit
def _load(
    gradient,
    offset,
    count,
    FULL: tl.constexpr,
    SUMS: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,
):
    """The elements of a tile's gradient, float32; DTYPE: of gradients."""
    within = tl.arange(0, TILE)
    if FULL:
        offset = (offset >> 4) << 4  # as it is, but the compiler sees that it is divisible by 16
    elements = Elements(offset + within, within < count)
    if SUMS:
        with_grad = Elements(elements.index, mask_where(elements.mask, gradient.address != 0))
        x = gradient.unscale * widen(gradient.address, with_grad, DTYPE, False)
        x = gradient.mean_weight * (load(gradient.sum_address, elements, False) + x)
    else:
        x = gradient.unscale * widen(gradient.address, elements, DTYPE, FULL)
    return x


@triton.jit
def _add_tile(
    copy, gradient, sums, offset, count, DTYPE: tl.constexpr, MODE: tl.constexpr, TILE: tl.constexpr
):
    """Add the squares of a tile's gradient to a copy of a sum.

    Args:
        sums: whether there may be a sum of earlier ones.
    """
    full = (count == TILE) & (((gradient.address | offset) & 15) == 0)
    # each branch adds: one that only loaded would become predicates of wide accesses
    if TURNS & MODE:
        if sums:
            add_squares(copy, _load(gradient, offset, count, False, True, DTYPE, TILE))
        elif full:
            add_squares(copy, _load(gradient, offset, count, True, False, DTYPE, TILE))
        else:
            add_squares(copy, _load(gradient, offset, count, False, False, DTYPE, TILE))
    else:
        if full:
            add_squares(copy, _load(gradient, offset, count, True, False, DTYPE, TILE))
        else:
            add_squares(copy, _load(gradient, offset, count, False, False, DTYPE, TILE))


@triton.jit
def _clip_factor(norm, max_norm):
    factor = max_norm / (norm + 1e-6)
    clips = ((factor < 1.0) | (factor != factor)) & (max_norm != float("inf"))
    return tl.where(clips, factor, 1.0)


@entry_point
def statistics_kernel(
    records,
    tiles,
    first_tile: tl.int64,
    num_tiles: tl.int64,
    first_head_tile: tl.int64,
    sums_of_players,
    digits,
    statistics,
    limits,
    grad_scale,
    rows,
    groups,
    waited,
    found_inf,
    JOINT: tl.constexpr,
    FINDS: tl.constexpr,
    MODE: tl.constexpr,
    TILE: tl.constexpr,
    CONSTANTS: tl.constexpr,
):
    """Add one tile.

    Args:
        records, tiles: as in `step_kernel`.
        first_tile, num_tiles: the tiles of the launch; those from first_head_tile on are the head's.
        sums_of_players: int64 pointer, COPIES of a sum for body and head; zero between launches.
        digits: int64 pointer, WORDS for body and head.
        statistics: float64 pointer to struct GradientStatistics.
        limits: float64 pointer: largest norms of body and head, where JOINT of both together.
        grad_scale: float32 pointer: of the loss, in MODE SCALED.
        rows, groups, waited: as in struct StepArgs, in MODE TURNS; the latter two where it is also COUNTED.
        found_inf: float32 pointer: becomes 1 if a gradient is not finite, also one that waits, else 0; where it FINDS.
        CONSTANTS: see `constants_of`.
    """
    tile_index = first_tile + tl.program_id(0)
    tile = tiles + tile_index * TILE_WORDS
    packed = tl.load(tile)
    index, count = packed & TILE_RECORD, packed >> TILE_COUNT
    record = records + index * RECORD_WORDS
    offset = tl.load(tile + TILE_OFFSET)
    grad = tl.load(record + GRAD)
    moves = grad != 0
    unscale = 1.0
    if SCALED & MODE:
        unscale = divide(1.0, tl.load(grad_scale))
    gradient = Gradient(grad, grad, unscale, 1.0)
    sums = False
    if TURNS & MODE:
        row_index = tl.load(record + ROW)
        row_words = rows + row_index * ROW_WORDS
        waited_before = 0.0
        if COUNTED & MODE:
            waited_before = tl.load(waited + index)
        group = (groups + row_index * GROUP_WORDS).to(tl.pointer_type(tl.int64))
        waits, has_sum = turn_of(row_words, group, waited_before, COUNTED & MODE)
        mean_weight = tl.load(row_words + MEAN_WEIGHT)
        sums = mean_weight != 0
        has_grad = moves
        moves = (moves | (sums & has_sum)) & (waits == 0)
        if FINDS:
            # one that waits is multiplied by 0: it adds nothing unless it is not finite
            unscale = tl.where(moves, unscale, 0.0)
            sums = sums & moves
            moves = moves | has_grad
        gradient = Gradient(grad, tl.load(record + GRAD_SUM), unscale, mean_weight)
    player = tile_index >= first_head_tile
    copy = sums_of_players + ((tl.program_id(0) % COPIES) * 2 + player) * KERNEL_WORDS
    # one that does not move adds nothing, and its program still counts as done
    if moves:
        if LOW_PRECISION & MODE:
            dtype = tl.load(record + GRAD_DTYPE)
            if dtype == FLOAT32:
                _add_tile(copy, gradient, sums, offset, count, FLOAT32, MODE, TILE)
            elif dtype == BFLOAT16:
                _add_tile(copy, gradient, sums, offset, count, BFLOAT16, MODE, TILE)
            else:
                _add_tile(copy, gradient, sums, offset, count, FLOAT16, MODE, TILE)
        else:
            _add_tile(copy, gradient, sums, offset, count, FLOAT32, MODE, TILE)
    # what was added before the count, by whichever thread added it
    tl.debug_barrier()
    blocks_done = statistics.to(tl.pointer_type(tl.int32)) + BLOCKS_DONE
    if tl.atomic_add(blocks_done, 1, sem="acq_rel") == num_tiles - 1:
        stride = 2 * KERNEL_WORDS
        body = conclude_sum(sums_of_players, stride, digits)
        head = conclude_sum(sums_of_players + KERNEL_WORDS, stride, digits + WORDS)
        body_norm, head_norm = tl.sqrt(body), tl.sqrt(head)
        total_norm = tl.sqrt(body + head)
        tl.store(statistics + SUM_SQ, body)
        tl.store(statistics + SUM_SQ + 1, head)
        tl.store(statistics + NORM, body_norm)
        tl.store(statistics + NORM + 1, head_norm)
        tl.store(statistics + TOTAL_NORM, total_norm)
        if JOINT:
            body_norm, head_norm = total_norm, total_norm
        factors = statistics.to(tl.pointer_type(tl.float32)) + FACTOR
        body_factor = _clip_factor(body_norm, tl.load(limits))
        head_factor = _clip_factor(head_norm, tl.load(limits + 1))
        tl.store(factors, body_factor.to(tl.float32))
        tl.store(factors + 1, head_factor.to(tl.float32))
        if FINDS:
            both = body + head
            tl.store(found_inf, tl.where(both - both == 0, 0.0, 1.0))
        tl.store(blocks_done, 0)


def launch_statistics(
    records: torch.Tensor,
    tiles: torch.Tensor,
    first_tile: int,
    num_tiles: int,
    first_head_tile: int,
    sums: torch.Tensor,
    digits: torch.Tensor,
    statistics: torch.Tensor,
    limits: torch.Tensor,
    joint: bool,
    rows: torch.Tensor,
    found_inf: torch.Tensor | None,
    options: LaunchOptions,
) -> None:
    """Enqueue the statistics of the gradients of `num_tiles` tiles on the current stream.

    Args:
        records: int64 [parameters * 24], tiles: int64 [tiles * 3], sums: int64 [COPIES, 2, KERNEL_WORDS], digits: int64
            [2, WORDS], statistics: float64 [8], limits: float64 [2], rows: float32 [rows * 20], found_inf: float32 [1]
            where infinities are looked for; on one device.
        options: of the step, of which the statistics take what there is before clipping.
    """
    given = (options.grad_scale, rows, options.groups, options.waited, found_inf)
    statistics_kernel[(num_tiles,)](
        records,
        tiles,
        first_tile,
        num_tiles,
        first_head_tile,
        sums,
        digits,
        statistics,
        limits,
        # a pointer that the mode does not use may be any
        *(rows if tensor is None else tensor for tensor in given),
        JOINT=joint,
        FINDS=found_inf is not None,
        MODE=options.mode & STATISTICS_MODES,
        TILE=TILE_ELEMENTS,
        CONSTANTS=constants_of(statistics_kernel),
        num_warps=NUM_WARPS,
        enable_fp_fusion=False,
    )
