"""Whole optimizers by the PTX of other architectures than the one that most tests run: the bits of `cpu`, no races."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import stackelberg_fused as sf

from . import emitted, nvcc_build, triton_launches
from .backends import PtxCudaBackend, PtxTritonBackend
from .caught_launch import CaughtLaunch, params_of
from .interpreted import Interpreted, kernel_of
from .kernel import Kernel
from .shared_runs import Found, Watch, check
from .trials import is_allowed

F32, BF16 = torch.float32, torch.bfloat16
# settings of the optimizer and the dtype of its parameters
CASES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "plain": (F32, {}),
    "clipped": (F32, {"max_grad_norm": 0.5}),
    "counted": (F32, {"capturable": True}),
    "8bit": (BF16, {"state_dtype": "8bit", "master": "stochastic"}),
}
# runs whose threads share data in every way that there is
SHARED = ("clip", "counted", "ball", "8bit, zeroing", "everything")
OTHERS = [arch for arch in emitted.ARCHS if arch != triton_launches.ARCH]

pytestmark = [pytest.mark.ptx, pytest.mark.slow, pytest.mark.parametrize("arch", OTHERS)]


def trained(backend: Any, dtype: torch.dtype, settings: dict[str, Any]) -> list[torch.Tensor]:
    """Parameters and state after two steps; tiles that are full, ragged and of one element."""
    random = torch.Generator().manual_seed(0)
    shapes = [(5000,), (33,), (1,), (4, 1024)]
    params = [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]
    groups = [{"params": params[:2]}, {"params": params[2:], "role": "head"}]
    optimizer = sf.StackelbergAdam(groups, lr=1e-2, backend=backend, **settings)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn(param.shape, generator=random).to(dtype)
        optimizer.step()
    state = [optimizer.state[param] for param in params]
    tensors = [v for of in state for v in of.values() if isinstance(v, torch.Tensor)]
    return [x.detach() for x in (*params, *tensors)]


def assert_bits_of_cpu(backend: Any, case: str) -> None:
    for ours, cpu in zip(trained(backend, *CASES[case]), trained("cpu", *CASES[case]), strict=True):
        assert ours.dtype == cpu.dtype
        assert torch.equal(ours.reshape(-1).view(torch.uint8), cpu.reshape(-1).view(torch.uint8))


def assert_no_races(found: Found) -> None:
    assert not [str(race) for _, races in found.races for race in races if not is_allowed(race)]
    assert found.equal


needs_nvcc = pytest.mark.skipif(bool(nvcc_build.unavailable()), reason=nvcc_build.unavailable())
needs_triton = pytest.mark.skipif(
    bool(triton_launches.unavailable()), reason=triton_launches.unavailable()
)
of_nvcc = pytest.mark.xdist_group("PTX of nvcc")
of_triton = pytest.mark.xdist_group("Triton's compiler")


def by_nvcc(arch: int) -> Callable[[CaughtLaunch], Kernel]:
    """What is launched is the same for all architectures; its text is another one's."""
    of_kernel = {
        name: text for text in emitted.nvcc_modules(arch).values() for name in params_of(text)
    }
    return lambda caught: kernel_of(of_kernel[caught.kernel], caught.kernel)


def of_its_own(caught: CaughtLaunch) -> Kernel:
    """The kernel as it was compiled, for the architecture that Triton's driver now names."""
    assert f".target sm_{triton_launches.ARCH}" in caught.ptx
    return kernel_of(caught.ptx, caught.kernel)


@needs_nvcc
@of_nvcc
@pytest.mark.parametrize("case", CASES)
def test_nvcc(arch: int, case: str) -> None:
    executor = Interpreted(change=by_nvcc(arch))
    assert_bits_of_cpu(PtxCudaBackend(executor), case)
    assert executor.launches


@needs_nvcc
@of_nvcc
@pytest.mark.parametrize("run", SHARED)
def test_nvcc_has_no_races(arch: int, run: str) -> None:
    assert_no_races(check(run, "nvcc", Watch(by_nvcc(arch))))


@needs_triton
@of_triton
@pytest.mark.parametrize("case", CASES)
def test_triton(arch: int, case: str) -> None:
    with of_arch(arch):
        executor = Interpreted(change=of_its_own)
        assert_bits_of_cpu(PtxTritonBackend(executor), case)
        assert executor.launches


@needs_triton
@of_triton
@pytest.mark.parametrize("run", SHARED)
def test_triton_has_no_races(arch: int, run: str) -> None:
    with of_arch(arch):
        assert_no_races(check(run, "triton", Watch(of_its_own)))


@contextmanager
def of_arch(arch: int) -> Iterator[None]:
    """Have Triton compile for another GPU, whose kernels are kept by its number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_launches, "ARCH", arch)
        patch.setattr(triton_launches, "DEVICE", 1000 + arch)
        yield
