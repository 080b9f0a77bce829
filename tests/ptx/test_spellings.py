"""The interpreter knows every instruction of every module that the build emits, for all architectures."""

from __future__ import annotations

import re

import pytest

from . import emitted, nvcc_build, nvcc_launches, triton_launches
from .parser import KernelText, read
from .spellings import kernels_in, not_understood, spellings

needs_nvcc = pytest.mark.skipif(bool(nvcc_build.unavailable()), reason=nvcc_build.unavailable())
needs_triton = pytest.mark.skipif(
    bool(triton_launches.unavailable()), reason=triton_launches.unavailable()
)


def assert_known(kernels: list[KernelText], least: int) -> None:
    found = spellings(kernels)
    assert sum(found.values()) > least
    # what is not told to round may become an fma (section 9.7.3, add and mul)
    assert [s for s in found if re.fullmatch(r"(add|sub|mul|mad)\.f(16|32|64|32x2)", s)] == []
    assert [each for kernel in kernels for each in not_understood(kernel)] == []


@needs_nvcc
@pytest.mark.slow
@pytest.mark.xdist_group("PTX of nvcc")
def test_of_nvcc() -> None:
    """What tests run, without compiling it again."""
    assert_known([k for text in nvcc_launches.modules() for k in read(text).values()], 50_000)


@needs_nvcc
@pytest.mark.ptx
@pytest.mark.slow
@pytest.mark.xdist_group("PTX of nvcc")
@pytest.mark.parametrize("arch", emitted.ARCHS)
def test_of_nvcc_for_every_architecture(arch: int) -> None:
    modules = emitted.nvcc_modules(arch)
    assert set(modules) == {"low_precision", "project", "statistics", "step"}
    assert_known([k for text in modules.values() for k in read(text).values()], 50_000)


@needs_triton
@pytest.mark.slow
@pytest.mark.xdist_group("Triton's compiler")
@pytest.mark.parametrize(
    "arch", [90, *(pytest.param(arch, marks=pytest.mark.ptx) for arch in (80, 100, 120))]
)
def test_of_triton(arch: int) -> None:
    """Compiled once for this and for the audit of machine code."""
    from compiled_triton import compiled  # it asks for versions of what is installed

    assert_known(kernels_in(compiled(), f"{arch}_"), 10_000)


def test_an_instruction_that_is_not_known_is_named_once_by_spelling() -> None:
    (kernel,) = read(
        ".entry k() {\n.reg .b32 %r<4>;\nbrev.b32 %r1, %r2;\nbrev.b32 %r2, %r3;\n"
        "add.s32 %r1, %r2, 1;\ntrap;\nret;\n}"
    ).values()
    assert spellings([kernel])["brev.b32"] == 2
    assert not_understood(kernel) == [
        "the instruction brev.b32 %r1, %r2 (line 3)",
        "the instruction trap  (line 6)",
    ]
