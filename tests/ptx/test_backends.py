"""Every kind of launch of both compilers, caught and executed on the host: the bits of the CPU backend."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from cases import MIXED, Options, groups_of, kernel_options, normal, set_gradients, sizes_for
from checks import assert_same_optimizers
from host_cuda.build import unavailable
from named_schemes import NAMED
from releasing import small_pair, take_steps
from scaled import train_scaled
from torch import nn

import stackelberg_fused as sf
from stackelberg_fused.native.tables import TILE_ELEMENTS

from .backends import PtxCudaBackend, PtxTritonBackend, kind_of
from .caught_launch import CaughtLaunch, params_of
from .host_executor import execute

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.xdist_group("PTX"),  # compiled kernels are kept by process
]
BACKENDS = {"nvcc": PtxCudaBackend, "triton": PtxTritonBackend}
by_compiler = pytest.mark.parametrize("compiler", BACKENDS)


def by_compiler_and(name: str, values: Iterable[str], slow: Collection[str]) -> Any:
    """Each value with each compiler; some take Triton more than a few seconds to compile."""
    every = [
        pytest.param(c, v, marks=[pytest.mark.slow] if c == "triton" and v in slow else [])
        for c in BACKENDS
        for v in values
    ]
    return pytest.mark.parametrize(f"compiler, {name}", every)


ADAM = Options("adamw", {"lr": 0.1, "weight_decay": 0.1})


class Case(NamedTuple):
    """An optimizer's options, and the kinds of launches that its steps make."""

    kinds: tuple[str, ...]
    options: Options = ADAM
    more: dict[str, Any] = {}  # noqa: RUF012
    step: dict[str, Any] = {}  # noqa: RUF012


TURNS = {"update_every": {"body": 3}, "update_every_grads": "mean"}
CASES = {
    "one rule": Case(("step",)),
    "mixed rules": Case(("step",), MIXED),
    "counted": Case(("step",), more={"capturable": True}),
    "a rate on the device": Case(("step",), more={"capturable": True, "lr": torch.tensor(0.1)}),
    "turns": Case(("step",), more=TURNS),
    "turns, counted": Case(("step",), more={**TURNS, "capturable": True}),
    "zeroing": Case(("step",), step={"zero_grad": True}),
    "clipped": Case(("statistics", "step"), more={"max_grad_norm": 0.5}),
    "clipped by role": Case(
        ("statistics", "step"), more={"max_grad_norm": {"body": 0.5, "head": 1.0}}
    ),
    "a ball": Case(("step", "project"), more={"constraint": {"body": sf.L2Ball(1.5)}}),
    "a simplex": Case(("step", "project"), more={"constraint": {"head": sf.Simplex(1.5)}}),
    "averages": Case(("step", "project"), more={"constraint": sf.L2Ball(1.5), "ema_decay": 0.9}),
    "everything": Case(
        ("statistics", "step", "project"),
        ADAM,
        {**TURNS, "capturable": True, "max_grad_norm": 1.0, "constraint": sf.L2Ball(1.5)},
        {"zero_grad": True},
    ),
}


SCHEMES = (*NAMED, "several")


class Catcher:
    """Executes launches on the host, keeps them, and looks at what they changed."""

    def __init__(self) -> None:
        self.launches: list[CaughtLaunch] = []

    def __call__(self, caught: CaughtLaunch) -> None:
        self.launches.append(caught)
        check_regions(caught)
        read = {r: _bytes(r.address, r.nbytes) for r in caught.regions if not r.writable}
        execute(caught)
        for region, before in read.items():
            assert _bytes(region.address, region.nbytes) == before, region

    @property
    def kinds(self) -> list[str]:
        return [kind_of(caught.kernel) for caught in self.launches]


def _bytes(address: int, nbytes: int) -> bytes:
    return ctypes.string_at(address, nbytes)


def check_regions(caught: CaughtLaunch) -> None:
    """Regions do not overlap; the kernel is in the module, and the arguments are as long as it declares."""
    regions = sorted(caught.regions, key=lambda region: region.address)
    for before, after in pairwise(regions):
        assert before.address + before.nbytes <= after.address, (before, after)
    assert caught.ptx.count(f".entry {caught.kernel}(") == 1
    last = params_of(caught.ptx)[caught.kernel][-1]
    assert len(caught.params) == last.offset + last.size


def catching(compiler: str) -> tuple[Any, Catcher]:
    """A backend whose launches a `Catcher` gets."""
    status = BACKENDS[compiler].status()
    if not status.available:
        pytest.skip(status.reason)
    catcher = Catcher()
    return BACKENDS[compiler](catcher), catcher


def same_steps(
    make: Callable[[Any], Any], compiler: str, steps: int = 4, **how: Any
) -> list[CaughtLaunch]:
    """Steps beside the CPU backend; returns what was launched."""
    backend, catcher = catching(compiler)
    ours, on_cpu = make(backend), make("cpu")
    for number in range(steps):
        for optimizer in (ours, on_cpu):
            set_gradients(optimizer.param_groups, number, 3 if number % 2 else 0)
            has_head = any(group["role"] == "head" for group in optimizer.param_groups)
            optimizer.step(role="head" if number == 2 and has_head else None, **how)
        assert_same_optimizers(ours, on_cpu, f"step {number}")
    return catcher.launches


@by_compiler_and("name", CASES, slow=["mixed rules", "everything"])
def test_every_kind_of_launch_is_caught_with_its_arguments(compiler: str, name: str) -> None:
    case = CASES[name]

    def make(backend: Any) -> Any:
        groups = groups_of(sizes_for(7), mixed=case.options.mixed)
        per_group = {k: v for k, v in case.more.items() if k in ("capturable", "lr")}
        more = {k: v for k, v in case.more.items() if k not in per_group}
        groups = [{**group, **per_group} for group in groups]
        return case.options.ours(groups, backend=backend, **more)

    launches = same_steps(make, compiler, **case.step)
    kinds = [kind_of(caught.kernel) for caught in launches]
    assert kinds[: len(case.kinds)] == [*case.kinds]
    assert {caught.compiler for caught in launches} == {compiler}


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
