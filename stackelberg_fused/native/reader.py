"""Readers of the addresses of parameters and gradients.

A reader reads all addresses in each step, because any code may rebind a parameter or a gradient. It stores nothing
about a gradient beyond the step, so it keeps no gradient alive and misses no change. This is the part of a step whose
cost grows with the number of parameters; `csrc/cpu/reader.cpp` does the same without a Python call per tensor.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..memory.sharding import dtensor_class, is_sharded, local_tensor, same_placements
from .tensor_abi import tensor_abi

try:
    from .._cpu import Reader as NativeReader
except ImportError:
    NativeReader = None

log = logging.getLogger("stackelberg_fused")


class Reader(Protocol):
    """Fills in the gradient addresses of records.

    Args:
        owners: the parameters, whose `.grad` is read.
        local_tensors: the tensors whose memory is updated: the parameters themselves, or their local shards.
        records: RECORD array [n]. `param` and `grad` are compared with the current addresses; `grad` is written.
        active: bool array [n], written: True for slots that have a gradient.
    """

    def read(self, first: int, last: int) -> tuple[list[int], list[int], bool, bool, Any]:
        """Update the records of the slots `[first, last)`.

        Returns:
            moved: the slots whose parameter has another address than in its record, another layout than at
                construction, or another tensor as its shard. Their records keep the old parameter.
            mismatched: the slots whose gradient may not fit its parameter in layout, placements, dtype or device. Their
                records keep the old gradient. The caller checks the slots of both lists.
            changed: True if a record was written.
            switched: True if a gradient appeared or disappeared.
            gradients: an object that keeps the gradients alive. Their memory has to last until the end of the launch,
                even if `.grad` is rebound.
        """
        ...


def same_layout(tensor: Tensor, shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Tell whether a tensor has the given shape and strides; strides of dimensions of size <= 1 do not count."""
    return tuple(tensor.shape) == tuple(shape) and all(
        actual == expected or size <= 1
        for actual, expected, size in zip(tensor.stride(), stride, shape, strict=True)
    )


class PythonReader:
    """`Reader` for a torch that native code does not know."""

    def __init__(
        self,
        owners: list[Tensor],
        local_tensors: list[Tensor],
        records: np.ndarray,
        active: np.ndarray,
    ) -> None:
        self._owners, self._locals = owners, local_tensors
        self._records, self._active = records, active
        self._dtypes = records["grad_dtype"].copy()  # at construction, those of the parameters
        self._layouts = [
            (tensor.stride(), tensor.shape, tensor.dtype, tensor.device) for tensor in local_tensors
        ]

    def read(self, first: int, last: int) -> tuple[list[int], list[int], bool, bool, Any]:
        slots, span = range(first, last), slice(first, last)
        params, grads = self._records["param"], self._records["grad"]
        gradients = [owner.grad for owner in self._owners[span]]
        param_addresses = params[span].tolist()
        moved = [
            i
            for i, address in zip(slots, param_addresses, strict=True)
            if local_tensor(self._owners[i]) is not self._locals[i]
            or self._locals[i].data_ptr() != address
            or not self._fits(i, self._locals[i])
        ]
        readable = [
            None if grad is None else self._readable(i, grad)
            for i, grad in zip(slots, gradients, strict=True)
        ]
        mismatched = [
            i
            for i, grad, found in zip(slots, gradients, readable, strict=True)
            if grad is not None and found is None
        ]
        skipped = set(mismatched)
        addresses = np.array(
            [
                grads[i] if i in skipped else 0 if found is None else found.data_ptr()
                for i, found in zip(slots, readable, strict=True)
            ],
            np.int64,
        )
        changed = not np.array_equal(addresses, grads[span])
        grads[span] = addresses
        grad_dtypes, param_dtypes = self._records["grad_dtype"][span], self._dtypes[span]
        if not np.array_equal(grad_dtypes, param_dtypes):  # an earlier gradient had another dtype
            fits = [
                g is not None and i not in skipped for i, g in zip(slots, gradients, strict=True)
            ]
            outdated = np.array(fits, bool) & (grad_dtypes != param_dtypes)
            grad_dtypes[outdated] = param_dtypes[outdated]
            changed |= bool(outdated.any())
        present = np.array([grad is not None for grad in gradients], bool)
        switched = not np.array_equal(present, self._active[span])
        self._active[span] = present
        return moved, mismatched, changed, switched, [g for g in gradients if g is not None]

    def _readable(self, i: int, grad: Any) -> Tensor | None:
        """The tensor whose memory is the gradient of slot `i`, or its shard; None where it does not fit, see `read`."""
        owner = self._owners[i]
        if owner is not self._locals[i]:
            if not is_sharded(grad) or not same_placements(grad, owner):
                return None
            grad = grad._local_tensor
        return grad if self._fits(i, grad) else None

    def _fits(self, i: int, tensor: Tensor) -> bool:
        """Tell whether a tensor has the layout, dtype and device of slot `i` at construction, and memory of its own."""
        stride, shape, dtype, device = self._layouts[i]
        if tensor.layout is not torch.strided:
            return False
        if (tensor.stride(), tensor.shape, tensor.dtype, tensor.device) != self._layouts[i] and (
            tensor.dtype != dtype
            or tensor.device != device
            or not same_layout(tensor, shape, stride)
        ):
            return False
        if tensor.numel() and not tensor.data_ptr():
            return False  # a wrapper without memory of its own
        # autograd returns a lazily negated view for conj().imag; its strides differ unless it has one element. Not
        # detected: torch._neg_view(), and as_strided() of such a view with the parameter's strides
        return tensor.numel() != 1 or not tensor.is_neg()


def make_reader(
    owners: list[Tensor],
    local_tensors: list[Tensor],
    records: np.ndarray,
    active: np.ndarray,
) -> Reader:
    """Return the native reader if it knows this torch and its DTensors, else a `PythonReader`."""
    abi = tensor_abi()
    if abi is None:
        return PythonReader(owners, local_tensors, records, active)
    sharded = any(owner is not local for owner, local in zip(owners, local_tensors, strict=True))
    arguments = owners, local_tensors, records.ctypes.data, active.ctypes.data, abi
    try:
        return NativeReader(*arguments, dtensor_class() if sharded else None)
    except RuntimeError as error:
        log.info("shards are read by Python, one by one: %s", error)
        return PythonReader(owners, local_tensors, records, active)
