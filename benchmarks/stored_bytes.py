"""Memory of a contestant between steps: bytes by its dtypes, and bytes as they are allocated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@dataclass(frozen=True)
class StoredDtypes:
    """The dtypes that Adam stores for one element of a matrix; norms and biases may have wider ones.

    Attributes:
        param: of the parameter.
        state: of each of the two moments.
        master: of the weight's further bits beside the parameter, if there are any.
        scale: of the scale that `block` elements of a moment share, if there is one.
        block: elements per scale.
        grad: of the gradient; None means `param`.
    """

    param: torch.dtype
    state: torch.dtype
    master: torch.dtype | None = None
    scale: torch.dtype | None = None
    block: int = 1
    grad: torch.dtype | None = None

    @property
    def stored(self) -> float:
        """Bytes per parameter between steps, without the gradient."""
        master = self.master.itemsize if self.master else 0
        scale = self.scale.itemsize / self.block if self.scale else 0
        return self.param.itemsize + master + 2 * (self.state.itemsize + scale)

    @property
    def moved(self) -> float:
        """Bytes per parameter that a step moves at least: it reads the gradient, and reads and writes the rest."""
        return (self.grad or self.param).itemsize + 2 * self.stored


def stored_bytes(params: Iterable[torch.Tensor], state: Mapping[Any, Mapping[str, Any]]) -> int:
    """Return the size of all storages that hold parameters and optimizer state; each storage counts once."""
    storages: dict[tuple[torch.device, int], int] = {}
    for value in (*params, *state.values()):
        for tensor in _plain_tensors(value, set()):
            storage = tensor.untyped_storage()
            storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _plain_tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yield the tensors inside a value of the state, also those inside tensor subclasses and other objects."""
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
        yield from _plain_tensors(part, seen)
