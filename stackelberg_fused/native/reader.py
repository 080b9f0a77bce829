"""Where parameters and their gradients lie: read at every step and afresh, because anyone may rebind either.

Nothing is remembered of a gradient beyond its step, so none is kept alive for long and none can change unnoticed.
`csrc/cpu/reader.cpp` is the same without a Python call per tensor: this is the part of a step whose cost grows with the
number of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .tensor_abi import tensor_abi

try:
    from .._cpu import Reader as NativeReader
except ImportError:
    NativeReader = None


class Reader(Protocol):
    """Fills the addresses of records.

    Args:
        owners: parameters, whose `.grad` is read.
        local_tensors: whose memory is updated: the parameters themselves, or their shards.
        records: RECORD array [n]; `param` and `grad` are compared with what is found, `grad` is written.
        active: bool array [n], written: which slots have a gradient.
    """

    def read(self, first: int, last: int) -> tuple[list[int], list[int], bool, bool, Any]:
        """Bring the slots `[first, last)` up to date.

        Returns:
            moved: slots whose parameter is not where its record says, or not in the layout it had at construction.
            odd: slots whose gradient is not known to fit, in layout, dtype and device. The records of both are left
                as they are: the caller looks closer.
            changed: whether a record was written.
            switched: whether a gradient appeared or disappeared.
            kept: keeps the gradients: whatever becomes of `.grad`, their memory has to last until the launch is over.
        """
        ...


def same_layout(tensor: Tensor, shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether shape and strides are those given, but for strides that are never taken."""
    return tuple(tensor.shape) == tuple(shape) and all(
        now == then or n <= 1 for now, then, n in zip(tensor.stride(), stride, shape, strict=True)
    )


class PythonReader:
    """`Reader` for what the native one cannot read: shards, and a torch that cannot be read natively."""

    def __init__(
        self,
        owners: list[Tensor],
        local_tensors: list[Tensor],
        records: np.ndarray,
        active: np.ndarray,
    ) -> None:
        self._owners, self._locals = owners, local_tensors
        self._records, self._active = records, active
        self._dtypes = records["grad_dtype"].copy()  # until now, those of the parameters
        self._layouts = [
            (tensor.stride(), tensor.shape, tensor.dtype, tensor.device) for tensor in local_tensors
        ]

    def read(self, first: int, last: int) -> tuple[list[int], list[int], bool, bool, Any]:
        slots, here = range(first, last), slice(first, last)
        params, grads = self._records["param"], self._records["grad"]
        found = [owner.grad for owner in self._owners[here]]
        known = params[here].tolist()
        moved = [
            i
            for i, address in zip(slots, known, strict=True)
            if self._locals[i].data_ptr() != address or not self._fits(i, self._locals[i])
        ]
        odd = [
            i
            for i, grad in zip(slots, found, strict=True)
            if grad is not None and not (self._owners[i] is self._locals[i] and self._fits(i, grad))
        ]
        left = set(odd)
        addresses = np.array(
            [
                grads[i] if i in left else 0 if grad is None else grad.data_ptr()
                for i, grad in zip(slots, found, strict=True)
            ],
            np.int64,
        )
        changed = not np.array_equal(addresses, grads[here])
        grads[here] = addresses
        dtypes, own = self._records["grad_dtype"][here], self._dtypes[here]
        if not np.array_equal(dtypes, own):  # one of another dtype was there before
            fits = [g is not None and i not in left for i, g in zip(slots, found, strict=True)]
            wrong = np.array(fits, bool) & (dtypes != own)
            dtypes[wrong] = own[wrong]
            changed |= bool(wrong.any())
        present = np.array([grad is not None for grad in found], bool)
        switched = not np.array_equal(present, self._active[here])
        self._active[here] = present
        return moved, odd, changed, switched, [grad for grad in found if grad is not None]

    def _fits(self, i: int, tensor: Tensor) -> bool:
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
        # what autograd makes of conj().imag, a view that negates what it shows, has other strides unless it has one
        # element; not seen: torch._neg_view(), and as_strided() of such a view with the parameter's strides
        return tensor.numel() != 1 or not tensor.is_neg()


def make_reader(
    owners: list[Tensor],
    local_tensors: list[Tensor],
    records: np.ndarray,
    active: np.ndarray,
) -> Reader:
    """The native reader where it can read this torch and these tensors, else the one above."""
    plain = all(owner is local for owner, local in zip(owners, local_tensors, strict=True))
    abi = tensor_abi() if plain else None
    if abi is None:
        return PythonReader(owners, local_tensors, records, active)
    return NativeReader(owners, local_tensors, records.ctypes.data, active.ctypes.data, abi)
