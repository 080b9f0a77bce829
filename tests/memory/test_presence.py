"""Which tensors have memory of their own, and whether all elements lie in it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from wrappers import wrapped

from stackelberg_fused.memory.presence import has_memory, is_abstract


class Plain(Tensor):
    """A subclass with memory of its own."""


class Watching(Tensor):
    """One with operations of its own, too."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def _fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(3)


def _shrunk(to: int) -> Tensor:
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(to)
    return tensor


ABSTRACT: dict[str, Callable[[], Tensor]] = {
    "meta": lambda: torch.ones(3, device="meta"),
    "fake": _fake,
    "wrapper": lambda: wrapped(torch.ones(3)),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "of a lazy module": lambda: nn.LazyLinear(3).weight,
}
PRESENT: dict[str, Callable[[], Tensor]] = {
    "plain": lambda: torch.ones(3),
    "parameter": lambda: nn.Parameter(torch.ones(2, 3)),
    "view": lambda: torch.ones(4, 5)[1:, 2:].t(),
    "repeated": lambda: torch.ones(1).expand(9),
    "scalar": lambda: torch.ones(()),
    "empty": lambda: torch.ones(0, 3),
    "subclass": lambda: torch.ones(3).as_subclass(Plain),
    "with operations of its own": lambda: Tensor._make_subclass(Watching, torch.ones(3)),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ABSTRACT)
def test_without_memory_of_its_own(name: str) -> None:
    tensor = ABSTRACT[name]()
    assert is_abstract(tensor)
    assert not has_memory(tensor)


@pytest.mark.parametrize("name", PRESENT)
def test_with_memory(name: str) -> None:
    tensor = PRESENT[name]()
    assert not is_abstract(tensor)
    assert has_memory(tensor)


@pytest.mark.parametrize("left, enough", [(0, False), (8, False), (12, True)])
def test_whose_storage_was_resized(left: int, enough: bool) -> None:
    tensor = _shrunk(left)
    assert not is_abstract(tensor)
    assert has_memory(tensor) == enough
