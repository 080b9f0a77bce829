"""Evaluation with the average of the weights."""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..memory.sharding import local_tensor


@contextmanager
def swapped(
    groups: Iterable[dict[str, Any]],
    state: Mapping[Tensor, dict[str, Any]],
    note: Callable[[bool], None],
) -> Iterator[None]:
    """Exchange the contents of the parameters of averaged groups and of their averages, and back on leaving.

    Addresses stay what they are, for CUDA graphs and compiled models; one parameter at a time exists twice, and those
    of fewer bits than their averages all the while.

    Args:
        note: told whether parameters may hold averages; still True where they could not be exchanged back.
    """
    displaced: dict[int, Tensor] = {}
    averaged = {id(p): p for g in groups if g["ema_decay"] is not None for p in g["params"]}
    entries = [(param, state.get(param) or {}) for param in averaged.values()]
    pairs = [(param, entry["ema"]) for param, entry in entries if "ema" in entry]
    note(True)
    try:
        _exchange(pairs, displaced)
    except BaseException:
        note(False)
        raise
    try:
        yield
    finally:
        _exchange(pairs, displaced)
        note(False)


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
