"""Gathered gradients: kernels read each where autograd left it, so a record only holds its address."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..groups.constraints import L2Ball, joint_set
from ..groups.schemes import DTYPE_WORD
from ..layout.part import Part
from ..layout.slot import Span
from ..layout.table import COUNTS, RebuildNeeded, Table
from ..memory.overlap import place_of
from ..memory.presence import has_memory, is_abstract
from ..memory.sharding import local_gradient, local_tensor
from ..native.reader import make_reader, same_layout

log = logging.getLogger("stackelberg_fused")


@dataclass(slots=True)
class Gathered:
    """The gradients of one step, kept alive until its launch.

    Attributes:
        gradients: keep the memory of the gradients that were read in place.
        mismatched: slots whose gradient does not have their parameter's layout, dtype or device.
        copies: tensors read in place of gradients: copies in the parameter's layout, local shards.
        copied: gradients of which only a copy is read.
        write_back: pairs of a parameter whose memory has gaps and the dense copy that is updated in its place.
    """

    gradients: Any
    mismatched: list[int]
    copies: list[Tensor]
    copied: list[Tensor]
    write_back: list[tuple[Tensor, Tensor]]


class Gradients:
    """The gradients of one table: checks, addresses, and the copies that other layouts need.

    Attributes:
        active: bool array [n]: slots that have a gradient.
        active_version: counts changes of `active`.
        params: of the slots.
        sharded: slots whose parameter is a DTensor.
        places: int64 array [n, 2]: where the memory of each parameter begins and ends.
        has_rebound: some parameter was rebound to other memory; whoever checked that none overlap sets it back.
    """

    def __init__(self, table: Table, reads_memory: bool, mixes_dtypes: bool) -> None:
        self._table = table
        self._reads_memory, self._mixes_dtypes = reads_memory, mixes_dtypes
        slots = table.slots
        self._shapes = [slot.local.shape for slot in slots]
        self._strides = [slot.local.stride() for slot in slots]
        self.places = np.array([place_of(slot.local) for slot in slots], np.int64)
        self.has_rebound = True  # perhaps before the table was made
        self._copied: set[int] = set()  # slots whose copy was logged
        self.sharded = [i for i, slot in enumerate(slots) if slot.local is not slot.param]
        self._gapped = [i for i, slot in enumerate(slots) if not slot.dense]
        self.active = np.zeros(len(slots), bool)
        self.active_version = 0
        self.params = [slot.param for slot in slots]
        self._reader = make_reader(
            self.params,
            [slot.local for slot in slots],
            table.records,
            self.active,
        )

    def gather(self, span: Span) -> Gathered:
        """Bring the records of a span up to date; every gradient's address is written.

        Raises:
            ValueError, TypeError, RuntimeError: a gradient or a rebound parameter does not fit; names the parameter.
            RebuildNeeded: a parameter was rebound to memory with other strides.
        """
        try:
            return self._gather(span)
        except BaseException:
            self._doubt()
            raise

    def gather_part(self, part: Part) -> Gathered:
        """As `gather`, of slots that need not lie side by side."""
        all_of = Gathered([], [], [], [], [])
        for run in part.runs:
            gathered = self.gather(run)
            all_of.gradients.append(gathered.gradients)
            all_of.mismatched += gathered.mismatched
            all_of.copies += gathered.copies
            all_of.copied += gathered.copied
        return all_of

    def _doubt(self) -> None:
        """Expect that anything has changed: an interrupt may have come with an answer of the reader's, now lost."""
        self.active_version += 1
        self._table.version += 1
        self._table.note_formats()

    def _gather(self, span: Span) -> Gathered:
        moved, mismatched, changed, switched, gradients = self._reader.read(
            span.first_slot, span.last_slot
        )
        self.active_version += switched
        self._table.count_native_writes(changed)
        if changed and self._table.has_other_gradients:
            self._table.note_formats()  # one may have the dtype of its parameter again
        gathered = Gathered(gradients, mismatched, [], [], [])
        for i in moved:
            self._follow(i)
        for i in mismatched:
            grad = self._local_gradient(i)
            assert grad is not None  # one without is no mismatch
            gathered.copies.append(grad)
            self._check(i, grad)
            if self._reads_memory and self._table.slots[i].dense:
                if self._needs_copy(i, grad):
                    gathered.copied.append(grad)
                    grad = self._in_parameter_layout(i, _as_dense(grad))
                    gathered.copies.append(grad)
                self._write_gradient(i, grad)
        return gathered

    def gradient(self, i: int) -> Tensor | None:
        """The gradient of a slot, or its local shard; of a sparse one, a dense copy."""
        grad = self._local_gradient(i)
        return None if grad is None else _as_dense(grad)

    def _local_gradient(self, i: int) -> Tensor | None:
        """The gradient of a slot, or its local shard; checked as far as shards go."""
        param = self._table.slots[i].param
        grad = param.grad
        return None if grad is None else local_gradient(grad, param, self._label(i))

    def stage(self, gathered: Gathered, span: Span, written: np.ndarray) -> None:
        """Put dense copies in the place of parameters whose memory has gaps.

        Args:
            written: bool [n]: slots that change, or may where the device counts.
        """
        if not (self._reads_memory and self._gapped):
            return
        try:
            self._stage_gapped(gathered, span, written)
        except BaseException:
            self._doubt()
            raise

    def _stage_gapped(self, gathered: Gathered, span: Span, written: np.ndarray) -> None:
        for i in self._gapped:
            inside = span.first_slot <= i < span.last_slot
            if not (inside and (self.active[i] or written[i])):
                continue
            local, grad = self._table.slots[i].local, self._local_gradient(i)
            with torch.no_grad():
                if grad is not None:
                    gathered.copied.append(grad)
                    grad = _as_dense(grad).resolve_neg().contiguous().to(self._dtype_read(i, grad))
                    gathered.copies.append(grad)
                    self._write_gradient(i, grad)
                if written[i]:  # autograd would take a write to one that waits for a change
                    copy = local.resolve_neg().contiguous()
                    gathered.write_back.append((local, copy))
                    self._table.write("param", i, copy.data_ptr())

    def _write_gradient(self, i: int, grad: Tensor) -> None:
        table, word = self._table, DTYPE_WORD.get(grad.dtype, 0)
        table.write("grad", i, grad.data_ptr())
        if table.records["grad_dtype"][i] != word:
            table.write("grad_dtype", i, word)
            table.note_formats()

    def _dtype_read(self, i: int, grad: Tensor) -> torch.dtype:
        """The dtype that a kernel reads a gradient in."""
        return grad.dtype if self._mixes_dtypes else self._table.slots[i].scheme.param

    def _label(self, i: int) -> str:
        return self._table.slots[i].name

    def _needs_copy(self, i: int, grad: Tensor) -> bool:
        is_dense = grad.layout is torch.strided
        is_laid_out = (
            is_dense and not grad.is_neg() and same_layout(grad, self._shapes[i], self._strides[i])
        )
        if is_laid_out and grad.dtype is self._dtype_read(i, grad):
            return False
        if i not in self._copied:
            self._copied.add(i)
            if not is_dense:
                what = f"layout {grad.layout}", f"{torch.strided}"
            elif not is_laid_out:
                what = f"strides {tuple(grad.stride())}", f"{tuple(self._strides[i])}"
            else:
                what = f"dtype {grad.dtype}", f"{self._table.slots[i].scheme.param}"
            log.info(
                "%s: its gradient's %s differ from the parameter's %s; it is copied into the "
                "parameter's layout before each step",
                self._label(i),
                *what,
            )
        return True

    def _in_parameter_layout(self, i: int, grad: Tensor) -> Tensor:
        with torch.no_grad():
            copy = torch.empty_strided(
                self._shapes[i],
                self._strides[i],
                dtype=self._dtype_read(i, grad),
                device=grad.device,
            )
            return copy.copy_(grad)

    def _check(self, i: int, grad: Tensor) -> None:
        """Raise, naming the parameter, for a gradient that no copy makes fit."""
        table, label = self._table, self._label(i)
        if grad.layout is not torch.strided:
            self._check_sparse(i, grad)
        if grad.is_complex():
            raise TypeError(f"{label}: complex gradients are not supported")
        dtype = table.slots[i].scheme.param
        if grad.dtype is not dtype and not (grad.dtype in DTYPE_WORD and dtype in DTYPE_WORD):
            raise TypeError(f"{label}: gradient has dtype {grad.dtype}, the parameter {dtype}")
        if grad.device != table.device:
            raise RuntimeError(
                f"{label}: gradient is on {grad.device}, the parameter on {table.device}"
            )
        if grad.shape != self._shapes[i]:
            raise ValueError(
                f"{label}: gradient has shape {tuple(grad.shape)}, the parameter {tuple(self._shapes[i])}"
            )
        is_read = self._reads_memory and grad.layout is torch.strided
        if is_read and grad.numel() and not grad.data_ptr():
            raise TypeError(
                f"{label}: gradient of type {type(grad).__name__} has no memory to read"
            )

    def _check_sparse(self, i: int, grad: Tensor) -> None:
        """Raise, naming the parameter, for a sparse gradient with which torch's optimizers do not step either."""
        label, group = self._label(i), self._table.groups[self._table.slots[i].group]
        if group["rule"] != "sgd":
            raise RuntimeError(
                f"{label}: sparse gradients go with rule 'sgd' only, not with {group['rule']!r}"
            )
        if grad.layout is not torch.sparse_coo:
            raise RuntimeError(f"{label}: sparse gradients ({grad.layout}) are not supported")
        if group["weight_decay"] != 0:
            raise RuntimeError(
                f"{label}: sparse gradients do not go with weight_decay, as in torch: give the parameter a group "
                "without it"
            )

    def _follow(self, i: int) -> None:
        """Accept a parameter whose `.data` was rebound to memory like the old, or raise."""
        slot, table = self._table.slots[i], self._table
        local = slot.local
        if local_tensor(slot.param) is not local:
            raise RebuildNeeded(slot.name)
        for what, now, before in (
            ("dtype", local.dtype, slot.scheme.param),
            ("device", local.device, table.device),
            ("shape", tuple(local.shape), tuple(self._shapes[i])),
        ):
            if now != before and all(name in COUNTS for name in table.state_tensors[i]):
                raise RebuildNeeded(slot.name)  # model.to() between construction and the first step
            if now != before:
                raise RuntimeError(
                    f"{slot.name}: its {what} was {before} when it was given to the optimizer and is now {now}"
                )
        if not same_layout(local, self._shapes[i], self._strides[i]):
            raise RebuildNeeded(slot.name)
        # a ball scales also who has no gradient
        is_written = self.active[i] or isinstance(joint_set(table.groups[slot.group]), L2Ball)
        # operations of a wrapper find its elements wherever they are
        by_address = self._reads_memory or not is_abstract(local)
        if is_written and by_address and not has_memory(local):
            raise TypeError(
                f"{slot.name}: a {type(local).__name__} has no memory to update, or less than it needs"
            )
        place = place_of(local)
        if tuple(self.places[i]) != place:
            self.places[i], self.has_rebound = place, True
        table.write("param", i, local.data_ptr())


def _as_dense(grad: Tensor) -> Tensor:
    """A gradient of strided layout: a copy where it is sparse."""
    return grad if grad.layout is torch.strided else grad.to_dense()
