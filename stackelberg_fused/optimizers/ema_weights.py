"""Evaluation with the average of the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backends.interrupts import HeldSignals, make_calls
from ..memory.presence import is_abstract
from ..memory.sharding import local_tensor


class AverageSwap:
    """Exchanges the contents of the parameters of averaged groups and of their averages, and exchanges them back.

    Addresses stay what they are, for CUDA graphs and compiled models. Room for the largest parameter is held all the
    while, and a copy of those of fewer bits than their averages: who ran out of memory meanwhile gets the weights back.
    An interrupt comes before an exchange or after it, and so does memory that runs out.

    Args:
        note: told whether parameters hold averages; still True where they could not be exchanged back.
    """

    def __init__(self, note: Callable[[bool], None]) -> None:
        self._note = note
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._displaced: dict[int, Tensor] = {}
        self._rooms: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        self._is_in = False

    def enter(
        self, groups: Iterable[dict[str, Any]], state: Mapping[Tensor, dict[str, Any]]
    ) -> None:
        """Have the parameters hold their averages."""
        averaged = {id(p): p for g in groups if g["ema_decay"] is not None for p in g["params"]}
        entries = [(param, state.get(param) or {}) for param in averaged.values()]
        self._pairs = [(param, entry["ema"]) for param, entry in entries if "ema" in entry]
        self._swap(True)

    def leave(self) -> None:
        """Have the parameters hold their weights, if they do not."""
        if self._is_in:
            self._swap(False)

    def _swap(self, is_in: bool) -> None:
        with HeldSignals():  # who leaves because of an interrupt is not kept from it by another one
            self._check_shapes()
            notes = [partial(setattr, self, "_is_in", is_in), partial(self._note, is_in)]
            make_calls([*self._exchange(is_in), *notes])

    def _check_shapes(self) -> None:
        """Raise RuntimeError for a parameter that got another shape."""
        for param, ema in self._pairs:
            if param.shape != ema.shape:
                raise RuntimeError(
                    f"ema_weights(): an average has shape {tuple(ema.shape)}, its parameter now {tuple(param.shape)}"
                )

    @torch.no_grad()
    def _exchange(self, is_in: bool) -> list[partial[Tensor]]:
        """The calls, of built-in functions alone, that go there or back; whatever they need is allocated here.

        They write to the parameters, not to shards: autograd counts what happens to a parameter.
        """
        calls: list[partial[Tensor]] = []
        for param, ema in self._pairs:
            here, there = local_tensor(param).detach(), local_tensor(ema).detach()
            take_over = partial(param.detach().copy_, ema.detach())
            if here.dtype is there.dtype:
                room = self._room(here)
                calls += [partial(room.copy_, here), take_over, partial(there.copy_, room)]
            elif is_in:
                self._displaced[id(param)] = param.detach().clone()
                calls.append(take_over)
            else:
                calls.append(partial(param.detach().copy_, self._displaced[id(param)]))
        return calls

    def _room(self, like: Tensor) -> Tensor:
        """Room for the weights of one parameter, the same for all of a device and dtype."""
        if is_abstract(like):
            return like.clone()
        key = like.device, like.dtype
        if key not in self._rooms:
            parts = (local_tensor(param) for param, _ in self._pairs)
            most = max(part.numel() for part in parts if (part.device, part.dtype) == key)
            self._rooms[key] = torch.empty(most, dtype=like.dtype, device=like.device)
        return self._rooms[key][: like.numel()].view(like.shape)
