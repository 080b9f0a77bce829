"""Evaluation with the average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .sharding import local_tensor


@contextmanager
def swapped(state: Mapping[Tensor, dict[str, Any]]) -> Iterator[None]:
    """Exchange the contents of every parameter and of its average, and back on leaving, to the bit.

    Addresses stay what they are, for CUDA graphs and compiled models; one parameter at a time exists twice.
    """
    pairs = [(param, entry["ema"]) for param, entry in state.items() if "ema" in entry]
    _exchange(pairs)
    try:
        yield
    finally:
        _exchange(pairs)


@torch.no_grad()
def _exchange(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for param, ema in pairs:
        here, there = local_tensor(param), local_tensor(ema)
        kept = here.clone()
        param.copy_(ema)  # not `here`: autograd counts what happens to the parameter
        there.copy_(kept)
