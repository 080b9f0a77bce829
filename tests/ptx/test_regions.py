"""The memory that launches may reach: exactly the tensors of the optimizer, each as long as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import MIXED, groups_of, normal, set_gradients, sizes_for
from host_cuda.build import unavailable
from named_schemes import NAMED
from torch import nn

import stackelberg_fused as sf

from .catcher import catching
from .caught_launch import CaughtLaunch
from .host_executor import execute
from .nvcc_build import unavailable as no_nvcc

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.skipif(bool(no_nvcc()), reason=no_nvcc()),
]
COUNTS = ("step", "waited")


def per_element(optimizer: Any, params: list[nn.Parameter]) -> dict[tuple[int, int], str]:
    """Address and bytes of every tensor with a number per element, of these parameters."""
    found = {}
    for p in params:
        state = {k: v for k, v in optimizer.state[p].items() if k not in COUNTS}
        for name, tensor in {"param": p, "grad": p.grad, **state}.items():
            if tensor is not None and tensor.numel():
                found[tensor.data_ptr(), tensor.numel() * tensor.element_size()] = name
    return found


def of_slots(caught: CaughtLaunch) -> dict[tuple[int, int], str]:
    return {(r.address, r.nbytes): r.name for r in caught.regions if "[" in r.name}


@pytest.mark.parametrize("name", ["mixed", *NAMED])
def test_buffers_of_parameters(name: str) -> None:
    backend, catcher = catching("nvcc")
    if name == "mixed":
        optimizer = MIXED.ours(groups_of(sizes_for(7), mixed=True), backend=backend)
    else:
        named = NAMED[name]
        params = [nn.Parameter(normal(s, 1).to(named.scheme.param)) for s in ((3, 50), (4097,))]
        optimizer = sf.StackelbergAdamW(
            params, **named.settings, ema_decay=0.9, float32_state="none", backend=backend
        )
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for number in range(2):
        set_gradients(optimizer.param_groups, number, 3)
        optimizer.step()
        assert of_slots(catcher.launches[-1]).keys() == per_element(optimizer, params).keys()


def test_a_step_of_one_player_reaches_nothing_of_the_other() -> None:
    backend, catcher = catching("nvcc")
    optimizer = sf.StackelbergSGD(groups_of([[5], [7]]), momentum=0.9, backend=backend)
    for role, params in zip(("body", "head"), optimizer.param_groups, strict=True):
        set_gradients(optimizer.param_groups, 0)
        optimizer.step(role=role)
        expected = per_element(optimizer, params["params"])
        assert of_slots(catcher.launches[-1]).keys() == expected.keys()


def test_what_is_only_read() -> None:
    backend, catcher = catching("nvcc")
    p = nn.Parameter(torch.ones(5))
    optimizer = sf.StackelbergAdamW([p], max_grad_norm=1.0, backend=backend, grads="flat")
    for clears in (False, True):
        p.grad.fill_(1.0)
        optimizer.step(zero_grad=clears)
        statistics, step = catcher.launches[-2:]
        assert writable(statistics) == {"statistics", "digits", "sums"}
        moves = {"param[0]", "exp_avg[0]", "exp_avg_sq[0]"}
        assert writable(step) == moves | ({"grad[0]"} if clears else set())


def writable(caught: CaughtLaunch) -> set[str]:
    return {region.name for region in caught.regions if region.writable}


def test_an_address_outside_is_noticed_before_the_launch() -> None:
    """Of the executor on the host, which could not tell otherwise."""

    def without_records(caught: CaughtLaunch) -> None:
        kept = tuple(r for r in caught.regions if r.name != "records")
        execute(replace(caught, regions=kept))

    backend, _ = catching("nvcc")
    backend._executor = without_records
    p = nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    with pytest.raises(AssertionError, match="records"):
        sf.StackelbergAdamW([p], backend=backend).step()
    assert torch.equal(p, torch.ones(5))
