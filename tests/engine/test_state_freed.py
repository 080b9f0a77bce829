"""Memory given back: of state that somebody deletes, and of storages that somebody resizes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import gradient, normal
from checks import all_params, assert_same_optimizers
from named_schemes import NAMED, Named
from torch import Tensor, nn

import stackelberg_fused as sf
from stackelberg_fused.memory.arena import PACKED_BYTES

LARGE, SMALL = PACKED_BYTES, 10  # elements; of 8 bits too


def _optimizer(backend: str = "cpu", sizes: tuple[int, ...] = (LARGE,) * 3, **more: Any) -> Any:
    groups = [{"params": [nn.Parameter(normal(n, i))]} for i, n in enumerate(sizes)]
    return sf.StackelbergAdamW(groups, lr=0.1, backend=backend, **more)


def _step(optimizer: Any, number: int, only: int | None = None) -> None:
    for k, p in enumerate(all_params(optimizer)):
        is_stepped = only in (None, k)
        p.grad = gradient(tuple(p.shape), 97 * number + k, p.dtype).clone() if is_stepped else None
    optimizer.step()


def _memory(optimizer: Any, param: Tensor) -> list[weakref.ref[Any]]:
    entry = optimizer.state[param]
    return [weakref.ref(value.untyped_storage()) for name, value in entry.items() if name != "step"]


def _delete(optimizer: Any, param: Tensor) -> None:
    del optimizer.state[param]


def _empty(optimizer: Any, param: Tensor) -> None:
    optimizer.state[param].clear()


def _freeze(optimizer: Any, param: Tensor) -> None:
    param.requires_grad_(False)
    del optimizer.state[param]


def _replace(optimizer: Any, param: Tensor) -> None:
    entry = optimizer.state[param]
    optimizer.state[param] = {name: value.clone() for name, value in entry.items()}


def _rebind(optimizer: Any, param: Tensor) -> None:
    for value in optimizer.state[param].values():
        value.data = value.clone()


def _drop_the_group(optimizer: Any, param: Tensor) -> None:
    del optimizer.param_groups[1], optimizer.state[param]


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("let_go", [_delete, _empty, _freeze, _replace, _rebind, _drop_the_group])
def test_state_that_is_let_go_is_freed_by_the_next_step(
    let_go: Callable[[Any, Tensor], None], backend: str, flatten: bool
) -> None:
    """Though other parameters go on with theirs."""
    optimizer = _optimizer(backend, flatten=flatten, ema_decay=0.5, state_dtype="8bit")
    _step(optimizer, 0)
    first, second, third = all_params(optimizer)
    kept = _memory(optimizer, first) + _memory(optimizer, third)
    gone = _memory(optimizer, second)
    large = [r for r in gone if r().nbytes() >= PACKED_BYTES]
    assert len(large) == 3  # codes of two moments, and the average
    let_go(optimizer, second)
    _step(optimizer, 1, only=0)
    gc.collect()
    assert [reference() for reference in large] == [None] * 3
    assert all(reference() is not None for reference in kept)


def test_small_state_lies_in_arenas_of_which_none_is_large() -> None:
    optimizer = _optimizer(sizes=(SMALL, LARGE, SMALL))
    _step(optimizer, 0)
    small, _, other = (optimizer.state[p]["exp_avg"] for p in all_params(optimizer))
    assert other.data_ptr() - small.data_ptr() == 64 * 4


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
def test_storages_are_resized_where_nothing_is_flattened(named: Named, backend: str) -> None:
    """As whoever offloads to the host, or FSDP, does between steps."""
    sides = []
    for is_resized in (True, False):
        params = [nn.Parameter(normal(n, n).to(named.scheme.param)) for n in (SMALL, 700)]
        optimizer = sf.StackelbergAdamW(
            params, lr=0.1, backend=backend, flatten=False, ema_decay=0.5, **named.settings
        )
        for number in range(4):
            _step(optimizer, number)
            if is_resized:
                entries = [v for p in params for n, v in optimizer.state[p].items() if n != "step"]
                _resize([*params, *entries])
        sides.append(optimizer)
    assert_same_optimizers(*sides)


@torch.no_grad()
def _resize(tensors: list[Tensor]) -> None:
    """Free the memory of all, then take some for each again."""
    kept = [(t, t.clone(), t.untyped_storage().nbytes()) for t in tensors]
    for tensor, _, _ in kept:
        tensor.untyped_storage().resize_(0)
    elsewhere = [torch.empty(700) for _ in range(9)]  # what was freed is not simply taken again
    for tensor, values, nbytes in kept:
        tensor.untyped_storage().resize_(nbytes)
        tensor.copy_(values)
    assert len(elsewhere) == 9


def test_a_count_is_not_resized_with_those_of_others() -> None:
    optimizer = _optimizer(flatten=False)
    _step(optimizer, 0)
    step = optimizer.state[all_params(optimizer)[1]]["step"]
    with pytest.raises(RuntimeError, match="not resizable"):
        step.untyped_storage().resize_(0)
