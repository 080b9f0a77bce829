"""Arenas: flat buffers that hold many tensors, each with its own storage.

Parameters and optimizer state lie one after the other, each at a multiple of `ALIGNMENT` elements. A tensor aliases its
part of an arena through a DLPack round trip: it uses the same memory, and its own storage has exactly its size and
keeps the arena alive. So saving one layer writes one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

Given = ParamSpec("Given")
Made = TypeVar("Made")

ALIGNMENT = 64  # elements
BUCKET_BYTES = 256 * 2**20  # the largest arena of several parameters
ZEROS_BYTES = 2**20  # and of several tensors of state
PACKED_BYTES = 2**16  # state of so many bytes has memory of its own


def lasting(function: Callable[Given, Made]) -> Callable[Given, Made]:
    """Have a function make ordinary tensors within `torch.inference_mode()` too: what it makes is used after it.

    A tensor that is made there can be neither written nor saved for a backward outside.
    """

    @wraps(function)
    def made(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(*args, **kwargs)

    return made


def is_dense(tensor: Tensor) -> bool:
    """Tell whether the elements fill one range of memory without gaps or overlaps, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return tensor.numel() == 0
        expected *= size
    return True


def in_memory_order(dense: Tensor) -> Tensor:
    """Return a flat view [numel] of a dense tensor, in memory order."""
    return dense.as_strided((dense.numel(),), (1,))


def owns_storage(tensor: Tensor) -> bool:
    """Tell whether a tensor fills its storage, so that it can move without separation from another view."""
    return tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def padded(numel: int) -> int:
    """Return the number of elements that a tensor of `numel` elements takes up in an arena."""
    return -(-numel // ALIGNMENT) * ALIGNMENT


def buckets(tensors: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Yield consecutive tensors in lists of at most `most` bytes; a larger tensor is a list of its own."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = padded(tensor.numel()) * tensor.element_size()
        if bucket and size + nbytes > most:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += nbytes
    if bucket:
        yield bucket


def _alias(arena: Tensor, offset: int, like: Tensor) -> Tensor:
    """Return a tensor of the shape and strides of `like` at an offset of the arena, with its own storage."""
    strides = like.stride()
    return from_dlpack(to_dlpack(torch.as_strided(arena, like.shape, strides, offset)))


def with_fixed_storage(tensor: Tensor) -> Tensor:
    """Return a dense tensor with the same memory, whose storage refuses to be resized: several tensors lie in it."""
    return _alias(tensor, 0, tensor)


def _offsets(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Return the offset of each tensor in an arena, and the size of the arena, in elements."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += padded(tensor.numel())
    return offsets, end


@lasting
@torch.no_grad()
def move_into_arenas(parameters: Sequence[Tensor]) -> None:
    """Move the data of dense parameters into new arenas, in order.

    Each bucket is allocated and filled, and its originals are freed, before the next bucket, so that no second copy of
    the model ever exists. Parameters without elements do not move.

    Args:
        parameters: dense, all of one device and dtype.
    """
    for bucket in buckets([p for p in parameters if p.numel()], BUCKET_BYTES):
        offsets, end = _offsets(bucket)
        arena = torch.empty(end, dtype=bucket[0].dtype, device=bucket[0].device)
        for parameter, offset in zip(bucket, offsets, strict=True):
            alias = _alias(arena, offset, parameter)
            alias.copy_(parameter)
            parameter.data = alias


def zeros_like(
    tensors: Sequence[Tensor], device: torch.device | None = None, pack: bool = True
) -> list[Tensor]:
    """Return zero-filled tensors with the shapes, strides and dtype of `tensors`.

    Args:
        tensors: dense, all of one dtype.
        device: of the zeros; by default that of the tensors.
        pack: put small ones into arenas, which are freed with the last tensor in them. Large ones have memory of their
            own, which is freed with them.
    """
    small = [t for t in tensors if pack and 0 < t.numel() * t.element_size() < PACKED_BYTES]
    packed = iter([zeros for b in buckets(small, ZEROS_BYTES) for zeros in _place_in(b, device)])
    is_small = {id(tensor) for tensor in small}
    return [next(packed) if id(t) in is_small else _zeros_like(t, device) for t in tensors]


def _zeros_like(tensor: Tensor, device: torch.device | None) -> Tensor:
    device = tensor.device if device is None else device
    zeros = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    return zeros.zero_()


def _place_in(tensors: Sequence[Tensor], device: torch.device | None) -> list[Tensor]:
    """Return one tensor for each of `tensors` in one new arena of zeros."""
    offsets, arena = _arena_of(tensors, device)
    return [_alias(arena, offset, t) for t, offset in zip(tensors, offsets, strict=True)]


def _arena_of(tensors: Sequence[Tensor], device: torch.device | None) -> tuple[list[int], Tensor]:
    """Return the offset of each tensor in a new arena of zeros, and the arena."""
    offsets, end = _offsets(tensors)
    device = tensors[0].device if device is None else device
    return offsets, torch.zeros(end, dtype=tensors[0].dtype, device=device)


def one_buffer(tensors: Sequence[Tensor], device: torch.device) -> tuple[Tensor, list[int]]:
    """Return a new arena of zeros for all of `tensors`, and the offset of each; see `view_of`."""
    offsets, arena = _arena_of(tensors, device)
    return arena, offsets


@lasting
def view_of(arena: Tensor, offset: int, like: Tensor) -> Tensor:
    """Return a tensor of the shape and strides of `like` at an offset of an arena, in the arena's own storage.

    So whoever exchanges the memory of one (`share_memory_`) exchanges that of all. It is no view in autograd's eyes:
    the tensors of one arena have separate versions.
    """
    storage, start = arena.untyped_storage(), arena.storage_offset()
    return arena.new_empty(0).set_(storage, start + offset, like.shape, like.stride())
