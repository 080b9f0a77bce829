"""`grads="flat"`: gradients that autograd adds up in one contiguous buffer per player."""

from __future__ import annotations

import numpy as np
import torch

from .arena import place_in
from .groups import ROLES
from .layout import Span, Table
from .sharding import is_sharded


class FlatGradients:
    """The buffers of one table, and the view of them that each parameter has as its gradient.

    Args:
        table: parameters that are frozen now get no place; their gradients are read where they are.

    Attributes:
        buffers: by role: every gradient at a multiple of 64 elements, zeros between them; no role without any.
        key: what a table must have in common with this one to go on with its buffers.

    Raises:
        ValueError: a parameter is a shard.
    """

    def __init__(self, table: Table) -> None:
        self.key = self.key_of(table)
        self.buffers: dict[str, torch.Tensor] = {}
        self._views: dict[int, torch.Tensor] = {}
        self._addresses = np.zeros(len(table.slots), np.int64)
        for role in ROLES:
            slots = [
                (i, slot)
                for i, slot in enumerate(table.slots)
                if slot.role == role and slot.param.requires_grad
            ]
            for _, slot in slots:
                if is_sharded(slot.param):
                    raise ValueError(f"{slot.name}: grads='flat' does not know DTensor shards")
            if slots:
                self.buffers[role], views = place_in([slot.dense_like() for _, slot in slots])
                self._views.update(zip((i for i, _ in slots), views, strict=True))
        for i, view in self._views.items():
            self._addresses[i] = view.data_ptr() if view.numel() else 0

    @staticmethod
    def key_of(table: Table) -> tuple[object, ...]:
        slots = tuple(
            (id(s.param), s.role, s.param.requires_grad, s.local.shape, s.local.stride())
            for s in table.slots
        )
        return table.device, table.dtype, slots

    @torch.no_grad()
    def attach(self, table: Table, span: Span, keep: bool) -> None:
        """Give the parameters of a span their views as gradients, where they have anything else.

        Args:
            keep: the values of gradients that they have; else the views are zero then.
        """
        for i in range(span.first_slot, span.last_slot):
            view, param = self._views.get(i), table.slots[i].param
            grad = param.grad
            if view is None or grad is view:
                continue
            if keep and grad is not None:
                view.copy_(grad)
            else:
                view.zero_()
            param.grad = view

    @torch.no_grad()
    def zero(self, table: Table) -> None:
        """Clear all gradients, those of parameters without a place to None."""
        for buffer in self.buffers.values():
            buffer.zero_()
        self.attach(table, table.spans[None], keep=False)
        for i, slot in enumerate(table.slots):
            if i not in self._views:
                slot.param.grad = None

    def misplaced(self, table: Table, span: Span) -> str | None:
        """The name of a parameter whose gradient is not where its view is."""
        here = slice(span.first_slot, span.last_slot)
        placed, found = self._addresses[here], table.records["grad"][here]
        wrong = np.flatnonzero((placed != 0) & (found != placed))
        return table.slots[span.first_slot + int(wrong[0])].name if len(wrong) else None
