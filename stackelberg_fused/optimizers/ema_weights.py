"""Evaluation with the average of the weights."""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterable,
    Mapping,
)
from typing import Any

import torch
from torch import Tensor

from ..backends.interrupts import HeldSignals
from ..memory.sharding import local_tensor


class AverageSwap:
    """Exchanges the contents of the parameters of averaged groups and of their averages, and exchanges them back.

    Addresses stay what they are, for CUDA graphs and compiled models; one parameter at a time exists twice, and those
    of fewer bits than their averages all the while. An interrupt comes before an exchange or after it.

    Args:
        note: told whether parameters hold averages; still True where they could not be exchanged back.
    """

    def __init__(self, note: Callable[[bool], None]) -> None:
        self._note = note
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._displaced: dict[int, Tensor] = {}
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
        with HeldSignals():
            _exchange(self._pairs, self._displaced)
            self._is_in = is_in
            self._note(is_in)


def _exchange(pairs: list[tuple[Tensor, Tensor]], displaced: dict[int, Tensor]) -> None:
    """All of them, or none where one fails: memory runs out, or a parameter has another shape now."""
    for param, ema in pairs:
        if param.shape != ema.shape:
            raise RuntimeError(
                f"ema_weights(): an average has shape {tuple(ema.shape)}, its parameter now {tuple(param.shape)}"
            )
    done = []
    try:
        for param, ema in pairs:
            _exchange_one(param, ema, displaced)
            done.append((param, ema))
    except BaseException:  # an interrupt too
        for param, ema in done:
            _exchange_one(param, ema, displaced)
        raise


@torch.no_grad()
def _exchange_one(param: Tensor, ema: Tensor, displaced: dict[int, Tensor]) -> None:
    """Go there or back; `displaced` holds weights meanwhile that have too few bits for their averages."""
    here, there = local_tensor(param), local_tensor(ema)
    if here.dtype is there.dtype:
        weights = here.clone()
        param.copy_(ema)  # not `here`: autograd counts what happens to the parameter
        there.copy_(weights)
    elif id(param) in displaced:
        param.copy_(displaced.pop(id(param)))
    else:
        displaced[id(param)] = param.detach().clone()
        param.copy_(ema)
