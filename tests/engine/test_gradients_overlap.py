"""Parameters that are rebound onto the memory of others after construction: refused as at construction."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import by_backend, chosen
from checks import Snapshot
from torch import Tensor, nn

import stackelberg_fused as sf

Rebind = Callable[[list[nn.Parameter], Tensor], None]


def _onto_another(params: list[nn.Parameter], _: Tensor) -> None:
    params[2].data = params[0].data


def _both(params: list[nn.Parameter], new: Tensor) -> None:
    params[0].data = params[2].data = new[:6]


def _in_part(params: list[nn.Parameter], new: Tensor) -> None:
    params[0].data, params[2].data = new[:6], new[5:11]


def _with_gaps(params: list[nn.Parameter], new: Tensor) -> None:
    params[0].data, params[2].data = new.as_strided((6,), (2,)), new.as_strided((6,), (2,), 2)


OVERLAPS: dict[str, Rebind] = {
    "onto another": _onto_another,
    "both": _both,
    "in part": _in_part,
    "with gaps": _with_gaps,
}


def _build(backend: Any, device: str, **more: Any) -> tuple[Any, list[nn.Parameter]]:
    params = [nn.Parameter(torch.ones(6, device=device) * k) for k in range(3)]
    named = list(zip("abc", params, strict=True))
    groups = [{"params": named[:2]}, {"params": named[2:], "role": "head"}]
    return sf.StackelbergSGD(groups, lr=0.1, momentum=0.9, backend=backend, **more), params


def _set_gradients(params: list[nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.ones_like(p)


@pytest.mark.parametrize("flatten", [True, False])
@pytest.mark.parametrize("name", OVERLAPS)
@by_backend
def test_refused_until_it_is_mended(backend: str, name: str, flatten: bool) -> None:
    instance, device = chosen(backend)
    ours, params = _build(instance, device, flatten=flatten)
    _set_gradients(params)
    ours.step()
    good = [p.data for p in params]
    OVERLAPS[name](params, torch.zeros(20, device=device))
    before = Snapshot(ours)
    for role in (None, None, "head"):
        with pytest.raises(ValueError, match=r"parameter '[ac]' .* and parameter '[ac]' .*overlap"):
            ours.step(role=role)
        before.assert_unchanged()
    ours.load_state_dict(copy.deepcopy(ours.state_dict()))
    with pytest.raises(ValueError, match="overlap in memory"):
        ours.step()
    for p, data in zip(params, good, strict=True):
        p.data = data
    ours.step()
    assert {float(ours.state[p]["step"]) for p in params} == {2.0}


@by_backend
def test_neighbours_are_accepted(backend: str) -> None:
    instance, device = chosen(backend)
    (ours, params), (same, others) = (_build(instance, device, flatten=False) for _ in range(2))
    whole = torch.zeros(40, device=device)
    for k, p in enumerate(params):
        whole[6 * k : 6 * k + 6] = p.detach()
        p.data = whole[6 * k : 6 * k + 6]
    for some, optimizer in ((params, ours), (others, same)):
        _set_gradients(some)
        optimizer.step()
    # elements of one between those of another
    woven = torch.zeros(12, device=device)
    for offset, p in enumerate(params[::2]):
        p.data = woven.as_strided((6,), (2,), offset).copy_(p.detach())
    for some, optimizer in ((params, ours), (others, same)):
        _set_gradients(some)
        optimizer.step()
    for p, q in zip(params, others, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_in_tables_of_their_own() -> None:
    a, b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, dtype=torch.float16))
    ours = sf.StackelbergSGD([a, b], lr=0.1, backend="reference")
    b.data = a.data.view(torch.float16)[2:6]
    _set_gradients([a, b])
    with pytest.raises(ValueError, match=r"parameter [01] .* and parameter [01] .*overlap"):
        ours.step()
    assert a.tolist() == [1.0] * 4
