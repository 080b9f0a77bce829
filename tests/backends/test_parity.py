"""The parity matrix: every backend, every specialisation of the rules, 1 to 465 groups.

Rows: `reference` equals torch to the bit (one torch group per group of ours); `cpu` is within the tolerances of the
reference; every instruction set and the CUDA kernel run on the host equal `cpu` to the bit. So does interpreted Triton
from 3.9 on; earlier interpreters round `tl.fma` twice, and have to be within the tolerances of the reference. On a GPU,
`cuda` and `triton` equal `cpu` to the bit.

Interpreted Triton runs in another process, because TRITON_INTERPRET is read when a kernel is decorated. It costs
milliseconds per tile, so it runs all option sets with 1, 2 and 7 groups, but with 465 groups and with 100_001 elements
only the four in `TRITON_SHARE`: one of each rule, and the launch that mixes all. Nothing else is left out.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from backends import rounds_fma_twice
from cases import (
    MIXED,
    Options,
    groups_of,
    kernel_options,
    set_gradients,
    sizes_for,
)
from checks import (
    all_params,
    assert_same_bits,
    assert_same_optimizers,
    plain,
)
from host_cuda.backend import HostCudaBackend
from near_reference import Before, synchronize
from patience import patience
from torch import Tensor

import stackelberg_fused as sf
from stackelberg_fused import _cpu
from stackelberg_fused.backends import cpu as cpu_backend
from stackelberg_fused.backends.triton import is_interpreting

STEPS = 3
OPTIONS = [*kernel_options(), MIXED]
GROUPS = [(1, False), (2, False), (7, False), (465, False), (1, True), (2, True)]
TRITON_SHARE = (
    "adam-amsgrad=True-weight_decay=0.1",
    "adamw-weight_decay=0.1",
    "sgd-momentum=0.9-nesterov=True-weight_decay=0.1",
    "mixed",
)

by_options = pytest.mark.parametrize("options", OPTIONS, ids=str)
by_groups = pytest.mark.parametrize(
    "num_groups, large", GROUPS, ids=[f"{n}{'-large' if large else ''}" for n, large in GROUPS]
)
HOST = ["avx512", "avx2", "baseline", "cuda-on-host"]
GPU = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton")]


def _groups(
    options: Options, num_groups: int, large: bool, device: str = "cpu"
) -> list[dict[str, Any]]:
    return groups_of(sizes_for(num_groups, large), device, mixed=options.mixed)


def _skip_every(step: int) -> int:
    """The second step leaves out every third parameter, so that step counts differ within a group."""
    return 3 if step == 1 else 0


def _train(
    options: Options, num_groups: int, large: bool, backend: Any, device: str = "cpu"
) -> list[Tensor]:
    """Parameters and state after each step."""
    optimizer = options.ours(_groups(options, num_groups, large, device), backend=backend)
    seen = []
    for step in range(STEPS):
        set_gradients(optimizer.param_groups, step, _skip_every(step))
        optimizer.step()
        for p in all_params(optimizer):
            seen += [plain(p), *(plain(v) for _, v in sorted(optimizer.state[p].items()))]
    if backend != "reference":
        assert optimizer.launches == STEPS
    return seen


@functools.lru_cache(maxsize=2)  # the backends take turns, so the last one is the one
def _trained_on_cpu(name: str, num_groups: int, large: bool) -> list[Tensor]:
    return _train(next(o for o in OPTIONS if str(o) == name), num_groups, large, "cpu")


def _assert_near_reference(options: Options, num_groups: int, large: bool, backend: str) -> None:
    """Every step starts from the same bits on both sides."""
    optimizer = options.ours(_groups(options, num_groups, large), backend=backend)
    reference = options.ours(_groups(options, num_groups, large), backend="reference")
    for step in range(STEPS):
        synchronize(optimizer, reference)
        before = Before(optimizer, reference, exact_fma=backend != "triton")
        for side in (optimizer, reference):
            set_gradients(side.param_groups, step, _skip_every(step))
            side.step()
        before.assert_same_step(f"step {step}")


def _assert_same_bits_as_cpu(
    options: Options, num_groups: int, large: bool, backend: Any, device: str = "cpu"
) -> None:
    actual = _train(options, num_groups, large, backend, device)
    for a, b in zip(actual, _trained_on_cpu(str(options), num_groups, large), strict=True):
        assert_same_bits(a, b)


@by_groups
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_reference_equals_torch(options: Options, num_groups: int, large: bool) -> None:
    ours = options.ours(_groups(options, num_groups, large), backend="reference")
    torchs = options.torchs(
        [{k: g[k] for k in ("params", "lr")} for g in _groups(options, num_groups, large)]
    )
    for step in range(STEPS):
        for side in (ours, torchs):
            set_gradients(side.param_groups, step, _skip_every(step))
            side.step()
    assert_same_optimizers(ours, torchs)


@by_groups
@by_options
def test_cpu_is_near_the_reference(options: Options, num_groups: int, large: bool) -> None:
    _assert_near_reference(options, num_groups, large, "cpu")


@pytest.mark.parametrize("backend", [*HOST, *GPU])
@by_groups
@by_options
def test_same_bits_as_cpu(options: Options, num_groups: int, large: bool, backend: str) -> None:
    device = "cpu"
    chosen: Any = backend
    if backend == "cuda-on-host":
        if not HostCudaBackend.status().available:
            pytest.skip(HostCudaBackend.status().reason)
        chosen = HostCudaBackend(order="shuffled", seed=num_groups)
    elif backend in HOST:
        try:
            chosen = cpu_backend.CpuBackend(isa=backend)
        except RuntimeError as error:
            pytest.skip(str(error))
    else:
        device = "cuda"
    _assert_same_bits_as_cpu(options, num_groups, large, chosen, device)


@pytest.mark.parametrize("threads", [2, 3, 8])
@by_options
def test_same_bits_with_any_number_of_threads(options: Options, threads: int) -> None:
    expected = _trained_on_cpu(str(options), 2, True)
    torch.set_num_threads(threads)
    for a, b in zip(_train(options, 2, True, "cpu"), expected, strict=True):
        assert_same_bits(a, b)


def test_auto_takes_the_widest_instruction_set() -> None:
    wide = [isa for isa in HOST[:3] if _runs(isa)]
    assert _cpu.isa("") == wide[0]


def _runs(isa: str) -> bool:
    try:
        return _cpu.isa(isa) == isa
    except RuntimeError:
        return False


needs_interpreter = pytest.mark.skipif(
    not is_interpreting(), reason="runs inside test_triton_interpreted_in_another_process"
)


@needs_interpreter
@by_groups
@by_options
def test_interpreted_triton(options: Options, num_groups: int, large: bool) -> None:
    if (num_groups == 465 or large) and str(options) not in TRITON_SHARE:
        pytest.skip("left out: the interpreter's time, see the docstring of this file")
    if rounds_fma_twice():
        _assert_near_reference(options, num_groups, large, "triton")
    else:
        _assert_same_bits_as_cpu(options, num_groups, large, "triton")


@pytest.mark.slow
@pytest.mark.skipif(is_interpreting(), reason="this is that process")
def test_triton_interpreted_in_another_process() -> None:
    triton = next(status for status in sf.backends() if status.name == "triton")
    if not triton.available and "TRITON_INTERPRET" not in triton.reason:
        pytest.skip(triton.reason)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "interpreted_triton",
        __file__,
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=patience(100)
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
