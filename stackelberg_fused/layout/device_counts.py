"""Step counts on the device, for steps whose outcome the host must not wait for: graph capture, gradient scalers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..memory import device_runtime
from ..memory.arena import with_fixed_storage
from ..numerics import turns
from .slot import Span

if TYPE_CHECKING:
    from .part import Part


class DeviceCounts:
    """Step counts that kernels read and advance, in place of rows that the host completes.

    Args:
        steps: float32 [n]: steps that each slot has taken.
        ready: bool array [n]: False where the coming step creates the momentum buffer.
        waited: float32 [n]: see `stackelberg_fused.numerics.turns`.
        empty: slots without elements, by which no block comes.
        device: of the table.

    Attributes:
        steps, ready, waited: float32, int32 and float32 [n], on the device.
        arrived: int32 [n]: blocks of the launch in progress that have read the count; 0 between launches.
    """

    def __init__(
        self,
        steps: Tensor,
        ready: np.ndarray,
        waited: Tensor,
        empty: Sequence[int],
        device: torch.device,
    ) -> None:
        # one element is one parameter's: whoever resizes the storage of its count would lose all others
        self.steps = with_fixed_storage(steps.to(device, copy=True))
        self.waited = with_fixed_storage(waited.to(device, copy=True))
        self.ready = torch.from_numpy(ready.astype(np.int32)).to(device)
        self.arrived = torch.zeros_like(self.ready)
        self._empty = torch.tensor(empty, dtype=torch.int64, device=device)
        self._known: dict[Span | Part, tuple[tuple[np.ndarray, ...], list[Tensor]]] = {}
        self._held_for_replays: list[list[Tensor]] = []  # for as long as there is this table

    def buffers(self) -> Iterator[Tensor]:
        """All that lies on the device."""
        yield from (self.steps, self.waited, self.ready, self.arrived, self._empty)
        for _, tensors in self._known.values():
            yield from tensors

    def advances_of_empty(
        self,
        span: Span | Part,
        mask: np.ndarray,
        update_every: np.ndarray,
        sums: np.ndarray,
        found_inf: Tensor | None,
    ) -> list[partial[Tensor]]:
        """The calls that advance the counts of slots without elements.

        Args:
            span: the slots of the step.
            mask: bool [n]: those of them that have a gradient.
            update_every, sums: int64 and bool [n]: of each slot's group.
            found_inf: one element; not 0: no step is taken.
        """
        if not len(self._empty):
            return []
        # copied to the device once, by a step before a capture, which must not
        arrays = mask, update_every, sums
        known, tensors = self._known.get(span, ((), []))
        if not known or not all(map(np.array_equal, arrays, known)):
            inside = np.zeros(len(mask), bool)
            inside[span.here] = True
            device = self.steps.device
            tensors = [device_runtime.uploaded(a, device)[self._empty] for a in (*arrays, inside)]
            self._known[span] = arrays, tensors
        if self.steps.is_cuda and device_runtime.is_capturing():
            self._held_for_replays.append(tensors)
        here, every, summed, within = tensors
        if found_inf is not None:
            within = within & (found_inf.view(()) == 0)
        if not (update_every > 1).any():
            return [self._add_to_steps(within & here)]
        waited = self.waited[self._empty]
        moves = here | (summed & turns.has_sum(waited))
        moves = within & moves & ~turns.waits(waited, every)
        after = turns.waited_after(waited, every, summed & here)
        after = torch.where(within, after, waited)
        wait = partial(self.waited.index_copy_, 0, self._empty, after)
        return [self._add_to_steps(moves), wait]

    def _add_to_steps(self, moves: Tensor) -> partial[Tensor]:
        return partial(self.steps.index_add_, 0, self._empty, moves.float())
