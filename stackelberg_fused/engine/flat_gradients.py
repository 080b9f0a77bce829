"""`grads="flat"`: gradients that autograd adds up in one contiguous buffer per player."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from ..layout.slot import Slot, Span
from ..layout.table import Table
from ..memory.arena import one_buffer, view_of
from ..memory.presence import is_abstract
from ..memory.sharding import is_sharded, local_gradient, local_tensor, shard_like
from ..native.tensor_abi import increment_versions

_requires_grad = attrgetter("requires_grad")


@dataclass(frozen=True)
class _Place:
    """The place of one gradient: at an offset of a buffer, in elements; `like`, which has no memory, has its layout.

    Of a DTensor it is the place of the local shard.
    """

    buffer: Tensor
    offset: int
    like: Tensor
    param: Tensor

    def address(self) -> int:
        inside = self.offset * self.buffer.element_size()
        return self.buffer.data_ptr() + inside if self.like.numel() else 0

    @torch.no_grad()
    def view(self) -> Tensor:
        return shard_like(view_of(self.buffer, self.offset, self.like), self.param)


class FlatGradients:
    """The buffers of one table, and the view of them that each parameter has as its gradient.

    A buffer and its views have one storage, so that whoever exchanges its memory (`share_memory_`) exchanges theirs.

    Args:
        table: parameters that are frozen now get no place; their gradients are read where they are.

    Attributes:
        buffers: by role and dtype: every gradient at a multiple of 64 elements, zeros between them; none is empty.
        key: what a table must have in common with this one to go on with its buffers.
    """

    def __init__(self, table: Table) -> None:
        self.key = self.key_of(table)
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._places: dict[int, _Place] = {}
        self._has_place = np.zeros(len(table.slots), bool)
        self._params = [slot.param for slot in table.slots]
        self._trained = [slot.param.requires_grad for slot in table.slots]
        kinds: dict[tuple[str, torch.dtype], list[int]] = defaultdict(list)
        for i, slot in enumerate(table.slots):
            if slot.param.requires_grad:
                kinds[slot.role, _gradient_dtype(slot)].append(i)
        for (role, dtype), slots in kinds.items():
            likes = [_like(table.slots[i], dtype) for i in slots]
            buffer, offsets = one_buffer(likes, table.device)
            self.buffers[role, dtype] = buffer
            for i, offset, like in zip(slots, offsets, likes, strict=True):
                self._places[i] = _Place(buffer, offset, like, table.slots[i].param)
            self._has_place[slots] = True
        self._views = {i: place.view() for i, place in self._places.items()}
        self._views_in: dict[Span, list[Tensor]] = {}
        self._addresses = np.zeros(len(table.slots), np.int64)
        self._bases: list[int] = []  # where the buffers were when addresses were noted
        self._note_addresses()

    def _note_addresses(self) -> None:
        """Follow buffers whose memory was exchanged in where gradients have to lie."""
        bases = [buffer.data_ptr() for buffer in self.buffers.values()]
        if bases != self._bases:
            self._bases = bases
            for i, place in self._places.items():
                self._addresses[i] = place.address()

    @staticmethod
    def key_of(table: Table) -> tuple[object, ...]:
        slots = tuple(
            (
                id(s.param),
                s.role,
                s.param.requires_grad,
                s.local.shape,
                s.local.stride(),
                _gradient_dtype(s),
            )
            for s in table.slots
        )
        return table.device, slots

    def by_dtype(self) -> list[dict[str, Tensor]]:
        """The buffers of each dtype by role."""
        found: dict[torch.dtype, dict[str, Tensor]] = defaultdict(dict)
        for (role, dtype), buffer in self.buffers.items():
            found[dtype][role] = buffer
        return list(found.values())

    @torch.no_grad()
    def attach(self, table: Table, span: Span, keep: bool) -> None:
        """Give the parameters of a span their views as gradients, where they have anything else.

        Args:
            keep: the values of gradients that they have; else the views are zero then.
        """
        self._note_addresses()
        for i in range(span.first_slot, span.last_slot):
            view, param = self._views.get(i), table.slots[i].param
            grad = param.grad
            if view is None:
                continue
            if local_tensor(view).data_ptr() != self._addresses[i]:  # as after `grad.data = ...`
                view = self._views[i] = self._places[i].view()
                self._views_in.clear()
            if grad is view:
                continue
            if keep and grad is not None:
                grad = local_gradient(grad, param, table.slots[i].name)
                local_tensor(view).copy_(grad if grad.layout is torch.strided else grad.to_dense())
            else:
                local_tensor(view).zero_()
            param.grad = view

    @torch.no_grad()
    def zero(self, table: Table, role: str | None) -> None:
        """Clear the gradients of a role, or all, those of parameters without a place to None."""
        span = table.spans[role]
        for (name, _), buffer in self.buffers.items():
            if role in (None, name):
                buffer.zero_()
        # views in memory, but not in autograd's eyes
        increment_versions(self.views_in(span))
        self.attach(table, span, keep=False)
        self.drop_others(table, span)

    def views_in(self, span: Span) -> list[Tensor]:
        """The views of a span's parameters: their gradients, where none is misplaced, and the shards of those."""
        found = self._views_in.get(span)
        if found is None:
            inside = range(span.first_slot, span.last_slot)
            found = [v for i, v in self._views.items() if i in inside]
            found += [local_tensor(v) for v in found if is_sharded(v)]
            self._views_in[span] = found
        return found

    def is_outdated(self) -> bool:
        """Tell whether a parameter was frozen or unfrozen since the buffers were made."""
        return list(map(_requires_grad, self._params)) != self._trained

    def let_go(self) -> None:
        """Take their views from parameters that were frozen since: they are not trained any more."""
        for i, view in self._views.items():
            param = self._params[i]
            if param.grad is view and not param.requires_grad:
                param.grad = None

    def all_placed(self, span: Span, active: np.ndarray) -> bool:
        """Tell whether every parameter of a span that has a gradient has a place in a buffer."""
        here = slice(span.first_slot, span.last_slot)
        return not (active[here] & ~self._has_place[here]).any()

    def drop_others(self, table: Table, span: Span) -> None:
        """Set the gradients of parameters without a place to None."""
        for i in range(span.first_slot, span.last_slot):
            if i not in self._views:
                table.slots[i].param.grad = None

    def misplaced(
        self, table: Table, span: Span, active: np.ndarray, mismatched: Sequence[int]
    ) -> str | None:
        """The name of a parameter of a span whose gradient is not its view, or that has none.

        Args:
            active: bool [n]: slots that have a gradient.
            mismatched: slots whose gradient is not where the records say.
        """
        self._note_addresses()
        wrong = self._has_place & (~active | (table.records["grad"] != self._addresses))
        for i in mismatched:
            view = self._views.get(i)
            grad = table.slots[i].param.grad
            wrong[i] = view is not None and not (
                grad is view and local_tensor(view).data_ptr() == self._addresses[i]
            )
        found = np.flatnonzero(wrong[span.first_slot : span.last_slot])
        return table.slots[span.first_slot + int(found[0])].name if len(found) else None


def _gradient_dtype(slot: Slot) -> torch.dtype:
    """The dtype of a parameter's gradient: its own, unless the user wants another (`Tensor.grad_dtype`)."""
    return getattr(slot.local, "grad_dtype", None) or slot.local.dtype


def _like(slot: Slot, dtype: torch.dtype) -> torch.Tensor:
    """A tensor without memory, of the shape and strides of a flat gradient."""
    like = slot.dense_like()
    return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device="meta")


def refuse_unflattened(slots: Iterable[Slot]) -> None:
    """Raise for a parameter that would get a place and has no memory of its own, or a gradient that is no such shard.

    Raises:
        ValueError, TypeError: names the parameter.
    """
    for slot in slots:
        param = slot.param
        if param.requires_grad and is_abstract(slot.local):
            raise ValueError(
                f"{slot.name}: grads='flat' does not know tensors without memory of their own"
            )
        if param.requires_grad and is_sharded(param) and param.grad is not None:
            local_gradient(param.grad, param, slot.name)
