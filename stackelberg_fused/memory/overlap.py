"""Detect parameters that overlap in memory."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from .presence import has_memory, is_abstract
from .sharding import local_tensor


def _as_array(tensor: Tensor) -> np.ndarray:
    """Return an array with the addresses of a tensor. Its memory, which may be on another device, is never accessed."""
    interface = {
        "version": 3,
        "data": (tensor.data_ptr(), False),
        "shape": tuple(tensor.shape),
        "strides": tuple(s * tensor.element_size() for s in tensor.stride()),
        "typestr": f"|V{tensor.element_size()}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _overlaps_itself(tensor: Tensor) -> bool:
    """Tell whether two elements share one memory location."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            break
        reach += (size - 1) * stride
    else:
        return False  # each stride is larger than the range of all smaller ones
    offsets = np.zeros(1, np.int64)
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        offsets = np.unique(offsets[:, None] + stride * np.arange(size))
    return len(offsets) < tensor.numel()


def place_of(tensor: Tensor) -> tuple[int, int]:
    """The addresses at which the memory of a tensor begins and ends; (0, 0) where it has none."""
    first = 0 if is_abstract(tensor) or not tensor.numel() else tensor.data_ptr()
    if not first:
        return 0, 0
    extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return first, first + extent * tensor.element_size()


def may_overlap(places: np.ndarray) -> bool:
    """Tell whether any two ranges of memory overlap: False rules out what `check_overlap` raises for.

    Args:
        places: int64 array [n, 2] of `place_of`.
    """
    first, last = places[np.argsort(places[:, 0], kind="stable")].T
    return bool((first[1:] < np.maximum.accumulate(last)[:-1]).any())


def check_overlap(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise if two parameters, or two elements of one parameter, share memory.

    Disjoint parameters in one storage are accepted, interleaved ones too. Those without memory share none.

    Args:
        named: label and parameter; the label is for the message.

    Raises:
        ValueError: memory is shared; names the parameters.
    """
    spans = []
    for label, param in named:
        tensor = local_tensor(param)
        if tensor.numel() == 0 or not has_memory(tensor):
            continue
        if _overlaps_itself(tensor):
            raise ValueError(f"{label}: several of its elements share one memory location")
        spans.append((str(tensor.device), *place_of(tensor), label, tensor))
    spans.sort(key=lambda span: span[:3])
    active: list[
        tuple[str, int, int, str, Tensor]
    ] = []  # earlier spans that reach beyond the start of this one
    for span in spans:
        active = [a for a in active if a[0] == span[0] and a[2] > span[1]]
        for earlier in active:
            if np.shares_memory(_as_array(earlier[4]), _as_array(span[4])):
                raise ValueError(f"{span[3]} and {earlier[3]} overlap in memory")
        active.append(span)
