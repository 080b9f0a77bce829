"""Rows, which no block of 8-bit codes crosses, so that ranks that hold rows of a parameter hold whole blocks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..memory.arena import is_dense
from ..memory.region import sharded_dims
from ..memory.sharding import is_sharded, local_tensor
from .codec import BLOCK


def rows_of(like: Tensor) -> tuple[int, int]:
    """Return the number of rows of a tensor without gaps and the elements of each, which lie side by side.

    A row has one index of the outermost dimension in memory; a tensor of at most one dimension is one row.
    """
    if like.dim() <= 1:
        return 1, like.numel()
    outer = 0
    if not like.is_contiguous():
        outer = max(range(like.dim()), key=lambda d: (like.shape[d] > 1, like.stride(d)))
    return like.shape[outer], math.prod(size for d, size in enumerate(like.shape) if d != outer)


def scale_shape(like: Tensor) -> tuple[int, ...]:
    """Return the shape of the scales of 8-bit codes: [rows, blocks of a row], or [blocks] where there is one row."""
    rows, length = rows_of(like)
    blocks = -(-length // BLOCK)
    return (blocks,) if like.dim() <= 1 else (rows, blocks)


def block_row_of(like: Tensor, whole: Tensor | None = None) -> int:
    """Return the elements of a row, where tiles that go by the whole parameter's elements would cut blocks; else 0.

    They do where rows of the whole parameter end within a block, and another row follows.

    Args:
        like: a local tensor.
        whole: the parameter that it is a shard of; None: it is all of it.
    """
    rows, length = rows_of(like)
    whole_rows, whole_length = (rows, length) if whole is None else rows_of(whole)
    return length if whole_rows > 1 and whole_length % BLOCK else 0


def layout_of(param: Tensor) -> Tensor:
    """Return a tensor without memory in the layout of a parameter's state, of all of it if it is a DTensor."""
    if is_dense(local_tensor(param)):
        return torch.empty_strided(param.shape, param.stride(), device="meta")
    return torch.empty(param.shape, device="meta")


def check_blocks(param: Any, label: str) -> None:
    """Raise ValueError if ranks share a block of 8-bit codes of a parameter. All ranks raise it, or none.

    Args:
        param: a DTensor, or a plain tensor, which shares none.
        label: names the parameter in the message.
    """
    if not is_sharded(param):
        return
    whole = tuple(param.shape)
    scales = scale_shape(torch.empty(whole, device="meta"))
    for dim in sharded_dims(param):
        if dim < len(scales):
            # rows are not cut; of a row, a rank has to begin where its blocks do
            each, block = (
                (1, 1) if dim == 0 < len(whole) - 1 else (math.prod(whole[dim + 1 :]), BLOCK)
            )
            begins = [at * each for at in _cuts(param, dim, whole[dim])]
            if begins == [at * block for at in _cuts(param, dim, scales[dim])]:
                continue
        raise ValueError(
            f"{label}: placements {param.placements} of shape {whole} cut blocks of {BLOCK} elements, which share a "
            "scale in state_dtype '8bit': shard it by rows, or so that the columns of every rank are divisible by "
            f"{BLOCK}; there are float32 and bfloat16 too"
        )


def _cuts(param: Any, dim: int, size: int) -> list[int]:
    """Return where parts of a dimension of `size` begin that ranks hold, but for 0."""
    placements = zip(param.placements, param.device_mesh.shape, strict=True)
    of_dim = [
        (p, ranks) for p, ranks in placements if getattr(p, "dim", None) in (dim, dim - param.dim())
    ]
    # a strided shard is that of what the other ones leave
    of_dim.sort(key=lambda found: "Strided" in type(found[0]).__name__)
    parts = [(0, size)]
    for _, ranks in of_dim:
        parts = [part for begin, length in parts for part in _chunks(begin, length, ranks)]
    return sorted({begin for begin, length in parts if begin and length})


def _chunks(begin: int, length: int, ranks: int) -> list[tuple[int, int]]:
    """Return the parts (begin, length) into which torch.chunk cuts, without empty ones."""
    step = max(1, -(-length // ranks))
    return [(begin + at, min(step, length - at)) for at in range(0, length, step)]
