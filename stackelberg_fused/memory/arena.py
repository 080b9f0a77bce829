"""Arenas: flat buffers that hold many tensors, each of which keeps a storage of its own.

Parameters and optimizer state lie one behind the other, every one at a multiple of `ALIGNMENT` elements. A tensor
aliases its place through a DLPack round trip: same memory, but a storage of exactly its own size that keeps the arena
alive, so that saving one layer writes one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

ALIGNMENT = 64
BUCKET_BYTES = 256 * 2**20


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one gap-free run of memory, each once, in some order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def in_memory_order(dense: Tensor) -> Tensor:
    """A flat view of a tensor without gaps, in the order of its memory."""
    return dense.as_strided((dense.numel(),), (1,))


def owns_storage(tensor: Tensor) -> bool:
    """Whether a tensor is alone in its storage, so that moving it cannot part it from another view."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def padded(numel: int) -> int:
    """Elements that a tensor takes in an arena."""
    return -(-numel // ALIGNMENT) * ALIGNMENT


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive runs of tensors of at most `BUCKET_BYTES` each, or one larger tensor alone."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = padded(tensor.numel()) * tensor.element_size()
        if bucket and size + nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += nbytes
    if bucket:
        yield bucket


def _alias(arena: Tensor, offset: int, like: Tensor) -> Tensor:
    strides = like.stride()
    return from_dlpack(to_dlpack(torch.as_strided(arena, like.shape, strides, offset)))


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += padded(tensor.numel())
    return offsets, end


@torch.no_grad()
def move_into_arenas(parameters: Sequence[Tensor]) -> None:
    """Rebind the data of dense parameters of one device and dtype to consecutive places in new arenas.

    Bucket by bucket: each is allocated and filled, and the originals freed, before the next, so that no second copy of
    the model ever exists. Zero-element parameters stay where they are.
    """
    for bucket in buckets([p for p in parameters if p.numel()]):
        offsets, end = _places(bucket)
        arena = torch.empty(end, dtype=bucket[0].dtype, device=bucket[0].device)
        for parameter, offset in zip(bucket, offsets, strict=True):
            place = _alias(arena, offset, parameter)
            place.copy_(parameter)
            parameter.data = place


def zeros_like_in_arenas(
    tensors: Sequence[Tensor], device: torch.device | None = None
) -> list[Tensor]:
    """Zero-filled tensors with the shapes, strides and dtype of dense `tensors`, packed into new arenas.

    Args:
        device: where; theirs if None.
    """
    return [place for bucket in buckets(tensors) for place in place_in(bucket, device)[1]]


def place_in(
    tensors: Sequence[Tensor], device: torch.device | None = None
) -> tuple[Tensor, list[Tensor]]:
    """One new arena of zeros, and tensors in it as `zeros_like_in_arenas` makes them."""
    offsets, end = _places(tensors)
    device = tensors[0].device if device is None else device
    arena = torch.zeros(end, dtype=tensors[0].dtype, device=device)
    places = [
        _alias(arena, offset, tensor) if tensor.numel() else torch.zeros_like(tensor, device=device)
        for tensor, offset in zip(tensors, offsets, strict=True)
    ]
    return arena, places
