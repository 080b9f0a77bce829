"""Triton's launches without a GPU: what is passed, what became a constant, and what stays as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import stackelberg_fused as sf

from .backends import PtxTritonBackend
from .caught_launch import CaughtLaunch, params_of
from .host_executor import values_of
from .triton_launches import SHARED_OF_A_BLOCK, unavailable

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.xdist_group("Triton's compiler"),
]


def launches_of_a_step(**how: Any) -> list[CaughtLaunch]:
    found: list[CaughtLaunch] = []
    params = [nn.Parameter(torch.ones(n)) for n in (5, 4097)]
    optimizer = sf.StackelbergAdamW(params, backend=PtxTritonBackend(found.append), **how)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return found


def test_a_step() -> None:
    (step,) = launches_of_a_step()
    assert (step.compiler, step.kernel, step.grid) == ("triton", "step_kernel", 3)
    assert f".reqntid {step.threads}" in step.ptx
    assert ".target sm_90" in step.ptx
    assert 0 <= step.dynamic_shared <= SHARED_OF_A_BLOCK
    constants = {"RULES", "MODE", "FORMATS", "TILE", "CONSTANTS"}
    assert set(step.arguments) == {*step.passed, *constants}
    assert step.arguments["RULES"] == (0,)
    values, regions = values_of(step), {r.name: r for r in step.regions}
    assert all(values[name] == regions[name].address for name in ("records", "tiles", "rows"))
    assert (values["first_tile"], values["first_head_tile"]) == (0, 3)


def test_hidden_parameters_are_zero() -> None:
    (step,) = launches_of_a_step()
    hidden = params_of(step.ptx)[step.kernel][len(step.passed) :]
    assert hidden  # of scratch memory
    for param in hidden:
        assert not any(step.params[param.offset : param.offset + param.size])


def test_launches_of_one_kernel_share_their_module() -> None:
    first, second = launches_of_a_step(lr=0.1) + launches_of_a_step(lr=0.2)
    assert first.ptx is second.ptx


def test_shared_memory_is_stated_where_the_kernel_names_it() -> None:
    statistics, step = launches_of_a_step(max_grad_norm=1.0)
    for launch in (statistics, step):
        assert bool(launch.dynamic_shared) == ("global_smem" in launch.ptx)
    assert statistics.dynamic_shared


def test_outside_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    before = vars(triton.runtime.driver).copy()
    launches_of_a_step()
    assert vars(triton.runtime.driver) == before


def test_what_the_executor_raises_comes_out() -> None:
    def refuse(launch: CaughtLaunch) -> None:
        raise KeyError(launch.kernel)

    p = nn.Parameter(torch.ones(5))
    p.grad = torch.ones(5)
    with pytest.raises(KeyError, match="step_kernel"):
        sf.StackelbergAdamW([p], backend=PtxTritonBackend(refuse)).step()


def test_where_parameters_lie() -> None:
    declared = {
        ".param .u64 .ptr .global .align 1 a,\n .param .u32 b": [(0, 8), (8, 4)],
        ".param .u32 a,\n\t.param .u64 b": [(0, 4), (8, 8)],
        ".param .align 8 .b8 a[176]": [(0, 176)],
        ".param .b8 a, .param .align 16 .b8 b[24], .param .f32 c": [(0, 1), (16, 24), (40, 4)],
        "": [],
    }
    for text, expected in declared.items():
        (found,) = params_of(f".visible .entry k(\n\t{text}\n)\n{{ ret; }}").values()
        assert [(param.offset, param.size) for param in found] == expected
