"""Every kind of launch of both compilers, caught and executed on the host: the bits of the CPU backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Options, groups_of, kernel_options, normal, set_gradients, sizes_for
from checks import assert_same_optimizers
from host_cuda.build import unavailable
from releasing import small_pair, take_steps
from scaled import train_scaled
from torch import nn

import stackelberg_fused as sf

from .backends import kind_of
from .catcher import catching
from .caught_launch import CaughtLaunch
from .launch_cases import (
    ADAM,
    CASES,
    SCHEMES,
    by_compiler,
    by_compiler_and,
    of_scheme,
    same_steps,
)

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
# test_kernels.py has the same launches executed as they were compiled; where it fails, these say whether it is the
# arguments
arguments_alone = pytest.mark.ptx


def caught_steps(
    make: Callable[[Any], Any], compiler: str, steps: int = 4, **how: Any
) -> list[CaughtLaunch]:
    """Steps beside the CPU backend; returns what was launched."""
    backend, catcher = catching(compiler)
    same_steps(make, backend, steps, **how)
    return catcher.launches


@arguments_alone
@by_compiler_and("name", CASES, slow=["everything"])
def test_every_kind_of_launch_is_caught_with_its_arguments(compiler: str, name: str) -> None:
    case = CASES[name]
    launches = caught_steps(case.make, compiler, **case.how)
    kinds = [kind_of(caught.kernel) for caught in launches]
    assert kinds[: len(case.kinds)] == [*case.kinds]
    assert {caught.compiler for caught in launches} == {compiler}
    assert case.written in {r.name for caught in launches for r in caught.regions if r.writable}


@by_compiler
def test_rates_in_tensors(compiler: str) -> None:
    rates = torch.tensor(0.1), torch.tensor(0.2, dtype=torch.float64)

    def make(backend: Any) -> Any:
        groups = [
            {**group, "lr": lr, "capturable": True}
            for group, lr in zip(groups_of([[5], [4097]]), rates, strict=True)
        ]
        return sf.StackelbergAdamW(groups, backend=backend)

    launches = caught_steps(make, compiler)
    reached = {r.name: r.nbytes for r in launches[0].regions if r.name.startswith("lr[")}
    assert reached == {"lr[0]": 4, "lr[1]": 8}


@arguments_alone
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_nvcc_has_a_kernel_for_each_rule(options: Options) -> None:
    launches = caught_steps(lambda b: options.ours(groups_of([[5, 4097]]), backend=b), "nvcc", 2)
    (kernel,) = {caught.kernel for caught in launches}
    assert kernel.startswith("_ZN2sf11step_kernelILi")


@arguments_alone
@by_compiler_and("name", SCHEMES, slow=SCHEMES)
def test_schemes(compiler: str, name: str) -> None:
    launches = caught_steps(of_scheme(name), compiler, 3)
    assert {kind_of(caught.kernel) for caught in launches} == {"step"}
    if compiler == "nvcc":
        (kernel,) = {caught.kernel for caught in launches}
        assert "low_precision_kernel" in kernel


@by_compiler
def test_under_a_gradient_scaler(compiler: str) -> None:
    """Steps are unscaled, skipped, and of infinities that the statistics look for."""
    backend, catcher = catching(compiler)

    def make(instance: Any) -> Any:
        return ADAM.ours(groups_of(sizes_for(7)), backend=instance, fused=True, max_grad_norm=1.0)

    ours, on_cpu = make(backend), make("cpu")
    assert train_scaled(sf.GradScaler, ours) == train_scaled(sf.GradScaler, on_cpu)
    assert_same_optimizers(ours, on_cpu)
    assert {"statistics", "step"} == set(catcher.kinds)
    names = {region.name for caught in catcher.launches for region in caught.regions}
    assert {"grad_scale", "found_inf"} <= names


@by_compiler
def test_steps_of_parts_of_a_table(compiler: str) -> None:
    backend, catcher = catching(compiler)
    releasing, ordinary = small_pair(backend=backend)
    take_steps(releasing, ordinary, range(3), skip_every=2)
    assert_same_optimizers(releasing, ordinary)
    assert set(catcher.kinds) == {"step"}


def test_conclusions() -> None:
    """nvcc's alone: the Triton backend concludes with torch."""
    backend, catcher = catching("nvcc")
    seen: list[Any] = []
    measure = backend.statistics

    def note(launch: Any, limits: Any) -> int:
        seen.append((launch, limits))
        return measure(launch, limits)

    backend.statistics = note
    params = [nn.Parameter(normal(n, n)) for n in (5, 4097)]
    optimizer = sf.StackelbergSGD(params, lr=0.1, max_grad_norm=0.5, backend=backend)
    set_gradients(optimizer.param_groups, 0)
    optimizer.step()
    ((launch, limits),) = seen
    expected = launch.statistics.buffer.clone()
    launch.statistics.buffer.zero_()
    backend.conclude(launch, limits)
    assert catcher.kinds == ["statistics", "step", "conclude"]
    assert torch.equal(launch.statistics.buffer, expected)
