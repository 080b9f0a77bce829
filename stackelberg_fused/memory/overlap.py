"""Parameters that use the same memory twice."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from .sharding import local_tensor


def _as_array(tensor: Tensor) -> np.ndarray:
    """An array with the addresses of a tensor; its memory (maybe another device's) is never touched."""

    interface = {
        "version": 3,
        "data": (tensor.data_ptr(), False),
        "shape": tuple(tensor.shape),
        "strides": tuple(s * tensor.element_size() for s in tensor.stride()),
        "typestr": f"|V{tensor.element_size()}",
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _meets_itself(tensor: Tensor) -> bool:
    """Whether two elements share one memory location."""
    reach = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            break
        reach += (size - 1) * stride
    else:
        return False  # each stride steps over everything that the smaller ones reach
    places = np.zeros(1, np.int64)
    for stride, size in zip(tensor.stride(), tensor.shape, strict=True):
        places = np.unique(places[:, None] + stride * np.arange(size))
    return len(places) < tensor.numel()


def check_overlap(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError for two different parameters, or one, that use the same memory twice.

    Disjoint parameters in one storage pass, also interleaved ones.
    """
    spans = []
    for label, param in named:
        tensor = local_tensor(param)
        if tensor.numel() == 0:
            continue
        if _meets_itself(tensor):
            raise ValueError(f"{label}: several of its elements share one memory location")
        extent = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        first = tensor.data_ptr()
        spans.append(
            (str(tensor.device), first, first + extent * tensor.element_size(), label, tensor)
        )
    spans.sort(key=lambda span: span[:3])
    active: list[tuple[str, int, int, str, Tensor]] = []
    for span in spans:
        active = [a for a in active if a[0] == span[0] and a[2] > span[1]]
        for other in active:
            if np.shares_memory(_as_array(other[4]), _as_array(span[4])):
                raise ValueError(f"{span[3]} and {other[3]} overlap in memory")
        active.append(span)
