"""Gathered gradients: each is read where autograd left it, so the table only needs its address.

This is the part of a step whose cost grows with the number of parameters, hence the list comprehensions: nothing here
may cost more than a few attribute reads for a gradient that is the same object at the same address as last time.
Objects are remembered weakly: a strong reference would keep the old gradients alive through the next backward.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from itertools import repeat
from operator import is_

import numpy as np
import torch
from torch import Tensor

from .layout import Slot, Span, Table
from .sharding import is_sharded, local_tensor

log = logging.getLogger("stackelberg_fused")


class LayoutChanged(Exception):
    """The table has to be built again: a parameter was rebound to memory of another kind, or a group changed sides."""


def _no_gradient() -> None:
    return None


def _normal_strides(tensor: Tensor) -> tuple[int, ...]:
    """Strides that matter: those of dimensions with more than one element."""
    return tuple(s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)


class Gradients:
    """The gradients of one table: checks, addresses, and the copies that odd layouts need."""

    def __init__(self, table: Table, reads_memory: bool) -> None:
        self._table = table
        self._reads_memory = reads_memory
        slots = table.slots
        self._params = [slot.param for slot in slots]
        self._locals = [slot.local for slot in slots]
        self._shapes = [slot.local.shape for slot in slots]
        self._strides = [slot.local.stride() for slot in slots]
        self._refs: list[Callable[[], Tensor | None]] = [_no_gradient] * len(slots)
        self._addresses = [0] * len(slots)
        self._param_addresses = [0] * len(slots)
        self._sharded = [i for i, slot in enumerate(slots) if is_sharded(slot.param)]
        self._strided: set[int] = set()  # gradients whose strides differ from their parameter's
        self._sparse_memory = [i for i, slot in enumerate(slots) if not slot.dense]
        self._pointers = [slot.local.data_ptr for slot in slots]
        self._fits = [
            (stride, shape, table.dtype, table.device)
            for stride, shape in zip(self._strides, self._shapes, strict=True)
        ]
        self._absent = [True] * len(slots)
        self.active = np.zeros(
            len(slots), bool
        )  # slots that have a gradient: the opposite, as an array
        self.active_version = 0  # counts changes of `active`

    def gather(self, span: Span) -> list[Tensor | None]:
        """The gradients of the slots in a span, in the parameters' layout; their addresses go to the records.

        Raises:
            ValueError, TypeError, RuntimeError: a gradient or a rebound parameter does not fit; names the parameter.
            LayoutChanged: a parameter was rebound to memory with other strides.
        """
        first, last = span.first_slot, span.last_slot
        self._follow_parameters(first, last)
        grads = [p.grad for p in self._params[first:last]]
        if self._sharded:
            self._unwrap(grads, first, last)
        seen = [ref() for ref in self._refs[first:last]]
        if not all(map(is_, grads, seen)):
            self._meet(grads, seen, first)
        absent = list(map(is_, grads, repeat(None)))
        if absent != self._absent[first:last]:
            self._absent[first:last] = absent
            self.active[first:last] = np.logical_not(absent)
            self.active_version += 1
        if self._reads_memory:
            self._address(grads, seen, first, last)
        return grads

    def _meet(self, grads: list[Tensor | None], seen: list[Tensor | None], first: int) -> None:
        """Check gradients that are new objects, and remember them."""
        new = [
            (i, g)
            for i, (g, s) in enumerate(zip(grads, seen, strict=True), first)
            if g is not s and g is not None
        ]
        fits = self._fits
        try:
            odd = [(i, g) for i, g in new if (g.stride(), g.shape, g.dtype, g.device) != fits[i]]
        except RuntimeError:  # sparse tensors have no strides
            odd = new
        for i, grad in odd:
            self._check(i, grad)
        if self._strided:
            self._strided.difference_update({i for i, _ in new} - {i for i, _ in odd})
        refs, ref = self._refs, weakref.ref
        for i, grad in new:
            refs[i] = ref(grad)

    def _address(
        self, grads: list[Tensor | None], seen: list[Tensor | None], first: int, last: int
    ) -> None:
        addresses = [0 if g is None else g.data_ptr() for g in grads]
        known = self._addresses[first:last]
        if addresses != known:
            for i, (now, before, g, s) in enumerate(
                zip(addresses, known, grads, seen, strict=True), first
            ):
                if now != before and g is s and g is not None:
                    self._check(i, g)  # the same object, rebound through .data
            self._write(addresses, first, last)
        if self._strided:
            for i in self._strided:
                grad = grads[i - first] if first <= i < last else None
                if grad is not None:
                    grads[i - first] = self._in_parameter_layout(i, grad)
            self._write([0 if g is None else g.data_ptr() for g in grads], first, last)

    def _write(self, addresses: list[int], first: int, last: int) -> None:
        if addresses != self._addresses[first:last]:
            self._addresses[first:last] = addresses
            self._table.records["grad"][first:last] = addresses
            self._table.version += 1

    def _in_parameter_layout(self, i: int, grad: Tensor) -> Tensor:
        with torch.no_grad():
            copy = torch.empty_strided(
                self._shapes[i], self._strides[i], dtype=grad.dtype, device=grad.device
            )
            return copy.copy_(grad)

    def _unwrap(self, grads: list[Tensor | None], first: int, last: int) -> None:
        for i in self._sharded:
            grad = grads[i - first] if first <= i < last else None
            if grad is not None:
                grads[i - first] = local_tensor(grad, like=self._params[i], label=self._label(i))

    def _label(self, i: int) -> str:
        return self._table.slots[i].name

    def _check(self, i: int, grad: Tensor) -> None:
        """Accept a gradient whose layout is not the parameter's to the letter, or raise and name its parameter."""
        slot = self._table.slots[i]
        self._check_rebound(slot, i)  # in place: the address did not tell
        self._refuse(i, grad)
        if not grad.is_neg() and _normal_strides(grad) == tuple(
            s for n, s in zip(self._shapes[i], self._strides[i], strict=True) if n > 1
        ):
            self._strided.discard(i)
            return
        if self._reads_memory and i not in self._strided:
            self._strided.add(i)
            log.info(
                "%s: its gradient's strides %s differ from the parameter's %s; it is copied into the "
                "parameter's layout before each step",
                slot.name,
                tuple(grad.stride()),
                tuple(self._strides[i]),
            )

    def _refuse(self, i: int, grad: Tensor) -> None:
        table, label = self._table, self._label(i)
        if grad.layout is not torch.strided:
            raise RuntimeError(f"{label}: sparse gradients ({grad.layout}) are not supported")
        if grad.is_complex():
            raise TypeError(f"{label}: complex gradients are not supported")
        if grad.dtype is not table.dtype:
            raise TypeError(
                f"{label}: gradient has dtype {grad.dtype}, the parameter {table.dtype}"
            )
        if grad.device != table.device:
            raise RuntimeError(
                f"{label}: gradient is on {grad.device}, the parameter on {table.device}"
            )
        if grad.shape != self._shapes[i]:
            raise ValueError(
                f"{label}: gradient has shape {tuple(grad.shape)}, the parameter {tuple(self._shapes[i])}"
            )

    def _follow_parameters(self, first: int, last: int) -> None:
        """Notice parameters whose `.data` was rebound, and update the records."""
        addresses = [pointer() for pointer in self._pointers[first:last]]
        known = self._param_addresses[first:last]
        if addresses == known:
            return
        for i, (now, before) in enumerate(zip(addresses, known, strict=True), first):
            if now != before:
                self._check_rebound(self._table.slots[i], i)
        self._param_addresses[first:last] = addresses
        self._table.records["param"][first:last] = addresses
        self._table.version += 1

    def _check_rebound(self, slot: Slot, i: int) -> None:
        local, table = slot.local, self._table
        for what, now, before in (
            ("dtype", local.dtype, table.dtype),
            ("device", local.device, table.device),
            ("shape", tuple(local.shape), tuple(self._shapes[i])),
        ):
            if now != before and all(name == "step" for name in table.state_tensors[i]):
                raise LayoutChanged(slot.name)  # model.to() between construction and the first step
            if now != before:
                raise RuntimeError(
                    f"{slot.name}: its {what} was {before} when it was given to the optimizer and is now {now}"
                )
        if local.stride() != self._strides[i]:
            raise LayoutChanged(slot.name)

    def stage(self, grads: list[Tensor | None], span: Span) -> list[tuple[Tensor, Tensor]]:
        """Dense copies of the parameters whose memory has gaps: pairs (parameter, copy) to copy back afterwards."""
        staged = []
        if self._reads_memory:
            for i in self._sparse_memory:
                if span.first_slot <= i < span.last_slot and grads[i - span.first_slot] is not None:
                    local = self._locals[i]
                    with torch.no_grad():
                        copy = local.contiguous()
                        grad = grads[i - span.first_slot].contiguous()
                    grads[i - span.first_slot] = grad
                    self._table.records["param"][i] = copy.data_ptr()
                    self._table.records["grad"][i] = grad.data_ptr()
                    self._addresses[i] = self._param_addresses[i] = 0
                    self._table.version += 1
                    staged.append((local, copy))
        return staged
