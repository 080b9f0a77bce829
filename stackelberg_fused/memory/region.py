"""The place of a shard in the whole parameter, by which the random numbers of its elements are drawn."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from ..torch_compat import shape_and_offsets
from .sharding import is_sharded, local_tensor


class Region(NamedTuple):
    """Where the elements of a local tensor lie in the whole parameter: in runs of neighbours, evenly spaced.

    Attributes:
        start: index in the whole parameter of the first element.
        run: elements of a run.
        stride: indices from the first element of a run to that of the next.
    """

    start: int
    run: int
    stride: int


def whole_region(numel: int) -> Region:
    """Return the region of a parameter that is no part of another."""
    return Region(0, numel, numel)


def region_of(param: Any, label: str = "the parameter") -> Region:
    """Return where the local elements of a parameter lie in the whole of it.

    Args:
        param: a DTensor, or a plain tensor, which is all of the parameter.
        label: names the parameter in the message.

    Raises:
        ValueError: they do not lie there in runs of one length and spacing. All ranks raise it, or none, if torch dealt
            out the parts.
    """
    local = local_tensor(param)
    if not is_sharded(param):
        return whole_region(local.numel())
    whole = tuple(param.shape)
    cut = sorted(sharded_dims(param))
    if not cut:
        return whole_region(local.numel())
    stride = contiguous_stride(whole)
    outside = [math.prod(whole[:d]) for d in range(len(whole))]
    found = _shape_and_offsets(param)
    if any(outside[d] > 1 for d in cut if 0 < d < cut[-1]):
        problem = "cut several of its dimensions"
    elif tuple(param.stride()) != stride or not local.is_contiguous():
        problem = "are of a parameter that is not contiguous"
    elif found is None or found[0] != tuple(local.shape) or _has_gaps(param):
        problem = "do not say where the elements of this rank belong"
    else:
        if not local.numel():
            return whole_region(0)
        start = sum(at * step for at, step in zip(found[1], stride, strict=True))
        inner = cut[-1]
        return Region(start, local.shape[inner] * stride[inner], whole[inner] * stride[inner])
    raise ValueError(
        f"{label}: placements {param.placements} of shape {whole} {problem}, and the random numbers of "
        "master='stochastic' and of state with fewer bits go by the place of an element in the whole parameter: keep "
        "its state in float32 and take another master"
    )


def sharded_dims(param: Any) -> set[int]:
    """Return the dimensions of a DTensor that several ranks share."""
    sizes = param.device_mesh.shape
    return {
        placement.dim % max(param.dim(), 1)
        for placement, ranks in zip(param.placements, sizes, strict=True)
        if hasattr(placement, "dim") and ranks > 1
    }


def _has_gaps(param: Any) -> bool:
    """Tell whether a strided shard (FSDP2 over tensor parallelism) lacks the shards that it is a part of."""
    placements, sizes = param.placements, param.device_mesh.shape
    for i, placement in enumerate(placements):
        factor = getattr(placement, "split_factor", 1)
        within = [
            ranks
            for other, ranks in zip(placements[i + 1 :], sizes[i + 1 :], strict=True)
            if getattr(other, "dim", None) == getattr(placement, "dim", None)
        ]
        if factor not in (1, math.prod(within)):
            return True
    return False


def _shape_and_offsets(param: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the shape of the local tensor and the index of its first element; None where torch does not know."""
    try:
        found = shape_and_offsets(param)
    except (NotImplementedError, RuntimeError, ValueError, AssertionError):
        return None
    return None if found is None else (tuple(map(int, found[0])), tuple(map(int, found[1])))


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the stride of a contiguous tensor of a shape."""
    return tuple(torch.empty(shape, device="meta").stride())
