"""Detect parameters that overlap in memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from types import SimpleNamespace
from typing import NamedTuple

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


def overlaps_itself(tensor: Tensor) -> bool:
    """Tell whether two elements share one memory location."""
    if not has_memory(tensor):
        return False
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


class _Span(NamedTuple):
    """The addresses from a tensor's first byte to its last."""

    device: str
    first: int
    end: int
    label: str
    tensor: Tensor


SHARED = "several of its elements share one memory location"
# pairs are compared by their strides; of more tensors that interleave, their number would take over
FEW = 8


def check_overlap(
    named: Iterable[tuple[str, Tensor]], state: Iterable[tuple[str, Tensor]] = ()
) -> None:
    """Raise if two parameters or tensors of state, or two elements of one, share memory.

    Disjoint parameters in one storage are accepted, interleaved ones too. Those without memory share none. Elements of
    a frozen parameter may share theirs, as an expanded one's do: nothing is written to it.

    Args:
        named: label and parameter; the label is for the message.
        state: label and plain tensor.

    Raises:
        ValueError: memory is shared; names the parameters.
    """
    spans = []
    params = (
        (label, local_tensor(param), param.requires_grad or param.grad is not None)
        for label, param in named
    )
    for label, tensor, is_written in chain(params, ((*each, True) for each in state)):
        if not has_memory(tensor) or tensor.numel() == 0:
            continue
        if is_written and overlaps_itself(tensor):
            raise ValueError(f"{label}: {SHARED}")
        spans.append(_Span(str(tensor.device), *place_of(tensor), label, tensor))
    spans.sort(key=lambda span: span[:3])
    for cluster in _clusters(spans):
        if len(cluster) <= FEW:
            for number, span in enumerate(cluster):
                _check_pairs(span, cluster[:number])
        else:
            _check_elements(cluster)


def _clusters(spans: list[_Span]) -> Iterator[list[_Span]]:
    """Sorted spans in runs of which each reaches into the ones before it; no run reaches into another."""
    cluster: list[_Span] = []
    reach = 0
    for span in spans:
        if cluster and (span.device != cluster[0].device or span.first >= reach):
            yield cluster
            cluster, reach = [], 0
        cluster.append(span)
        reach = max(reach, span.end)
    if cluster:
        yield cluster


def _check_pairs(span: _Span, others: Iterable[_Span]) -> None:
    for other in others:
        if other.end > span.first and np.shares_memory(
            _as_array(other.tensor), _as_array(span.tensor)
        ):
            raise ValueError(f"{span.label} and {other.label} overlap in memory")


def _check_elements(cluster: list[_Span]) -> None:
    """Mark the memory of one tensor after the other: time and memory grow with what they reach over."""
    start = cluster[0].first
    sizes = [n for span in cluster for n in (span.tensor.element_size(), span.first - start)]
    unit = math.gcd(*sizes)  # bytes
    taken = np.zeros((max(span.end for span in cluster) - start) // unit, bool)
    for number, span in enumerate(cluster):
        wide = span.tensor.element_size() // unit
        strides = [s * wide for s in span.tensor.stride()]
        here = np.lib.stride_tricks.as_strided(
            taken[(span.first - start) // unit :], (*span.tensor.shape, wide), (*strides, 1)
        )
        if here.any():
            _check_pairs(span, cluster[:number])
        here[...] = True
