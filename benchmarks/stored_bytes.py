"""What a contestant keeps between steps: bytes by its dtypes, and bytes as they are allocated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@dataclass(frozen=True)
class Kept:
    """Dtypes of an element of a matrix whose rule is Adam's; norms and biases may be kept in more.

    Attributes:
        param: of the parameter, and of its gradient.
        state: of either moment.
        beside: of what the weight has more than its parameter, if anything.
        scale: of what `block` elements of a moment share, if anything.
    """

    param: torch.dtype
    state: torch.dtype
    beside: torch.dtype | None = None
    scale: torch.dtype | None = None
    block: int = 1

    @property
    def stored(self) -> float:
        """Bytes per parameter between steps; the gradient is not counted."""
        beside = self.beside.itemsize if self.beside else 0
        scale = self.scale.itemsize / self.block if self.scale else 0
        return self.param.itemsize + beside + 2 * (self.state.itemsize + scale)

    @property
    def moved(self) -> float:
        """Bytes per parameter that a step has to move: reads the gradient, reads and writes the rest."""
        return self.param.itemsize + 2 * self.stored


def stored_bytes(params: Iterable[torch.Tensor], state: Mapping[Any, Mapping[str, Any]]) -> int:
    """Bytes of every storage that parameters and optimizer state lie in, each storage once."""
    storages: dict[tuple[torch.device, int], int] = {}
    for value in (*params, *state.values()):
        for tensor in _tensors(value, set()):
            storage = tensor.untyped_storage()
            storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Plain tensors in a value of the state: also in subclasses of tensors, and in a package's own objects."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        if not is_traceable_wrapper_subclass(value):
            yield value
            return
        parts: Iterable[Any] = [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    else:
        parts = getattr(value, "__dict__", {}).values()
    for part in parts:
        yield from _tensors(part, seen)
