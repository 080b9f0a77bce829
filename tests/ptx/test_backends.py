"""Every kind of launch of both compilers, caught and executed on the host: the bits of the CPU backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import pytest
import torch
from cases import MIXED, Options, groups_of, kernel_options, normal, set_gradients, sizes_for
from checks import all_params, assert_same_optimizers
from host_cuda.build import unavailable
from named_schemes import NAMED
from releasing import small_pair, take_steps
from scaled import train_scaled
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.native.tables import TILE_ELEMENTS

from .backends import kind_of
from .catcher import catching
from .caught_launch import CaughtLaunch

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())
# in the process of tests/triton_kernels/test_machine_code.py, which compiles many of the same kernels
of_triton = pytest.mark.xdist_group("Triton's compiler")
by_compiler = pytest.mark.parametrize("compiler", ["nvcc", pytest.param("triton", marks=of_triton)])


def by_compiler_and(name: str, values: Iterable[str], slow: Collection[str]) -> Any:
    """Each value with each compiler; some take Triton more than a few seconds to compile."""
    every = [pytest.param("nvcc", value) for value in values]
    for value in values:
        marks = [of_triton, *([pytest.mark.slow] if value in slow else [])]
        every.append(pytest.param("triton", value, marks=marks))
    return pytest.mark.parametrize(f"compiler, {name}", every)


ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})


class Case(NamedTuple):
    """An optimizer's options.

    Attributes:
        kinds: of the launches that its first step makes.
        written: a region that one of them writes, which launches without these options do not have or do not write.
        options, more: of the optimizer.
        step: how it is stepped.
    """

    kinds: tuple[str, ...]
    written: str = "param[1]"
    more: dict[str, Any] = {}  # noqa: RUF012
    options: Options = ADAM
    step: dict[str, Any] = {}  # noqa: RUF012


TURNS = {"update_every": {"body": 3}, "update_every_grads": "mean"}
CLEARS = {"zero_grad": True}
FLAT = {"grads": "flat"}
CASES = {
    "one rule": Case(("step",)),
    "mixed rules": Case(("step",), options=MIXED),
    "counted": Case(("step",), "steps", {"capturable": True}),
    "turns": Case(("step",), "grad_sum[1]", TURNS),
    "turns, counted": Case(("step",), "waited", {**TURNS, "capturable": True}),
    "zeroing": Case(("step",), "grad[1]", FLAT, step=CLEARS),
    "clipped": Case(("statistics", "step"), "digits", {"max_grad_norm": 0.5}),
    "clipped by role": Case(
        ("statistics", "step"), "sums", {"max_grad_norm": {"body": 0.5, "head": 1.0}}
    ),
    "a ball": Case(("step", "project"), "set_sums", {"constraint": {"body": sf.L2Ball(1.5)}}),
    "a simplex": Case(("step", "project"), "moved", {"constraint": {"head": sf.Simplex(1.5)}}),
    "averages": Case(
        ("step", "project"), "ema[1]", {"constraint": sf.L2Ball(1.5), "ema_decay": 0.9}
    ),
    "everything": Case(
        ("statistics", "step", "project"),
        "grad[1]",
        {
            **TURNS,
            **FLAT,
            "capturable": True,
            "max_grad_norm": 1.0,
            "constraint": sf.L2Ball(1.5),
        },
        step=CLEARS,
    ),
}
SCHEMES = (*NAMED, "several")


def give_gradients(optimizer: Any, number: int, flat: bool) -> None:
    """Some of them none; of flat ones, zero, in the place that they have."""
    params = all_params(optimizer)
    places = [p.grad if flat else None for p in params]
    set_gradients(optimizer.param_groups, number, 3 if number % 2 else 0)
    for p, place in zip(params, places, strict=True):
        if place is not None:
            place.copy_(torch.zeros_like(place) if p.grad is None else p.grad)
            p.grad = place


def same_steps(
    make: Callable[[Any], Any], compiler: str, steps: int = 4, flat: bool = False, **how: Any
) -> list[CaughtLaunch]:
    """Steps beside the CPU backend; returns what was launched."""
    backend, catcher = catching(compiler)
    ours, on_cpu = make(backend), make("cpu")
    for number in range(steps):
        for optimizer in (ours, on_cpu):
            give_gradients(optimizer, number, flat)
            has_head = any(group["role"] == "head" for group in optimizer.param_groups)
            optimizer.step(role="head" if number == 2 and has_head else None, **how)
        assert_same_optimizers(ours, on_cpu, f"step {number}")
    return catcher.launches


@by_compiler_and("name", CASES, slow=["mixed rules", "everything"])
def test_every_kind_of_launch_is_caught_with_its_arguments(compiler: str, name: str) -> None:
    case = CASES[name]

    def make(backend: Any) -> Any:
        groups = groups_of(sizes_for(7), mixed=case.options.mixed)
        return case.options.ours(groups, backend=backend, **case.more)

    launches = same_steps(make, compiler, flat="grads" in case.more, **case.step)
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

    launches = same_steps(make, compiler)
    reached = {r.name: r.nbytes for r in launches[0].regions if r.name.startswith("lr[")}
    assert reached == {"lr[0]": 4, "lr[1]": 8}


@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_nvcc_has_a_kernel_for_each_rule(options: Options) -> None:
    launches = same_steps(lambda b: options.ours(groups_of([[5, 4097]]), backend=b), "nvcc", 2)
    (kernel,) = {caught.kernel for caught in launches}
    assert kernel.startswith("_ZN2sf11step_kernelILi")


@by_compiler_and("name", SCHEMES, slow=SCHEMES)
def test_schemes(compiler: str, name: str) -> None:
    named = NAMED["8bit" if name == "several" else name]
    sizes = [(TILE_ELEMENTS,), (2, TILE_ELEMENTS), (3, 1500)]

    def make(backend: Any) -> Any:
        params = [
            nn.Parameter(normal(size, i).to(named.scheme.param)) for i, size in enumerate(sizes)
        ]
        how = {"lr": 0.01, "seed": 5, "backend": backend}
        if name != "several":  # otherwise vectors have float32 state, as by default
            how["float32_state"] = "none"
        return sf.StackelbergAdamW(params, **named.settings, **how)

    launches = same_steps(make, compiler, 3)
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
