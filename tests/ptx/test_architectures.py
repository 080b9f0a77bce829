"""Whole optimizers by the PTX of other architectures than the one that most tests run: the bits of `cpu` too."""

from __future__ import annotations

from collections.abc import Iterator
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

F32, BF16 = torch.float32, torch.bfloat16
# settings of the optimizer and the dtype of its parameters
CASES: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "plain": (F32, {}),
    "clipped": (F32, {"max_grad_norm": 0.5}),
    "counted": (F32, {"capturable": True}),
    "8bit": (BF16, {"state_dtype": "8bit", "master": "stochastic"}),
}
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


@pytest.mark.skipif(bool(nvcc_build.unavailable()), reason=nvcc_build.unavailable())
@pytest.mark.xdist_group("PTX of nvcc")
@pytest.mark.parametrize("case", CASES)
def test_nvcc(arch: int, case: str) -> None:
    """What is launched is the same for all architectures; its text is another one's."""
    of_kernel = {
        name: text for text in emitted.nvcc_modules(arch).values() for name in params_of(text)
    }

    def change(caught: CaughtLaunch) -> Kernel:
        return kernel_of(of_kernel[caught.kernel], caught.kernel)

    executor = Interpreted(change=change)
    assert_bits_of_cpu(PtxCudaBackend(executor), case)
    assert executor.launches


@pytest.mark.skipif(bool(triton_launches.unavailable()), reason=triton_launches.unavailable())
@pytest.mark.xdist_group("Triton's compiler")
@pytest.mark.parametrize("case", CASES)
def test_triton(arch: int, case: str) -> None:
    seen = set()

    def change(caught: CaughtLaunch) -> Kernel:
        seen.add(f".target sm_{arch}" in caught.ptx)
        return kernel_of(caught.ptx, caught.kernel)

    with of_arch(arch):
        assert_bits_of_cpu(PtxTritonBackend(Interpreted(change=change)), case)
    assert seen == {True}


@contextmanager
def of_arch(arch: int) -> Iterator[None]:
    """Have Triton compile for another GPU, whose kernels are kept by its number."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_launches, "ARCH", arch)
        patch.setattr(triton_launches, "DEVICE", 1000 + arch)
        yield
