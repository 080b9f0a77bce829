"""The CUDA kernel on the host against the CPU kernel: bits, memory outside, bytes moved; once under sanitizers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_cuda.backend import (
    ORDERS,
    HostCudaBackend,
    counters,
    library,
)
from host_cuda.build import (
    FLOAT_FLAGS,
    SANITIZED,
    build,
    unavailable,
)
from kernel_problem import (
    FIELDS,
    SIZES,
    TURNS,
    Problem,
)
from paths import CSRC
from patience import patience

import stackelberg_fused as sf
from stackelberg_fused.groups.rules import RULES

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=unavailable())


def _launch(problem: Problem, order: str = "forward") -> None:
    library().sf_host_set_order(ORDERS.index(order), 3)
    error = library().sf_host_step(problem.args())
    assert error is None, error


def _check_against_cpu(problem: Problem, order: str = "forward") -> None:
    expected, before = problem.updated_by_cpu(), problem.memory.copy()
    _launch(problem, order)
    updated = problem.memory.copy()
    problem.memory[:] = before
    problem.check(updated, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_the_bits_of_the_cpu_kernel(rule: int, order: str) -> None:
    _check_against_cpu(Problem((rule,)), order)


@pytest.mark.parametrize("order", ORDERS)
def test_a_launch_that_mixes_all_rules(order: str) -> None:
    _check_against_cpu(Problem(RULES, absent=(3, 9, 17)), order)


def test_zeros_subnormals_infinities_and_nan() -> None:
    _check_against_cpu(Problem(RULES, special=True))


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("field", [field for field in FIELDS if field != "grad_sum"])
def test_every_buffer_at_every_4_byte_offset(field: str, shift: int) -> None:
    problem = Problem(RULES, {field: shift})
    before = counters()
    _check_against_cpu(problem)
    moved = counters().since(before)
    assert moved.bytes == problem.bytes()
    if field in ("param", "grad"):
        assert moved.vector_bytes == 0


@pytest.mark.parametrize("rules", [*[(rule,) for rule in RULES], RULES], ids=str)
def test_bytes_per_parameter_are_the_floor(rules: tuple[int, ...]) -> None:
    problem = Problem(rules, absent=(7,))
    before = counters()
    _launch(problem)
    moved = counters().since(before)
    assert moved.launches == 1
    assert moved.blocks == len(problem.tiles)
    assert moved.bytes == problem.bytes()
    assert moved.vector_bytes == problem.bytes_in_full_tiles()


# every rule moving by a mean, and among all of them every kind of turn; one gradient in three absent
EVERY = RULES * 2
EVERY_TURN = ("mean",) * len(RULES) + tuple(TURNS) * (len(RULES) // len(TURNS))
ABSENT = tuple(range(1, len(EVERY) * len(SIZES), 3))
# launches with options; 0.25 as a scale of the loss
OPTIONS: dict[str, dict[str, Any]] = {
    "zeroing": {"zero_grads": 1},
    "turns": {"turns": EVERY_TURN},
    "turns and zeroing": {"turns": EVERY_TURN, "zero_grads": 1},
    "skipped": {"turns": EVERY_TURN, "zero_grads": 1, "found_inf": True},
    "scaled": {"turns": EVERY_TURN, "zero_grads": 1, "grad_scale": True},
}
QUARTER = np.array([0.25], np.float32)


def _with_options(name: str, **more: Any) -> Problem:
    pointers = ("found_inf", "grad_scale")
    settings = {k: QUARTER.ctypes.data if k in pointers else v for k, v in OPTIONS[name].items()}
    return Problem(EVERY, absent=ABSENT, **{**settings, **more})


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_give_the_bits_of_the_cpu_kernel_and_move_what_they_must(
    name: str, order: str
) -> None:
    problem = _with_options(name)
    before = counters()
    _check_against_cpu(problem, order)
    moved = counters().since(before)
    assert (moved.launches, moved.blocks) == (1, len(problem.tiles))
    assert moved.bytes == problem.bytes()
    assert moved.vector_bytes == problem.bytes_in_full_tiles()


@pytest.mark.parametrize(
    "turn, expected", [("moves", 28), ("waits", 0), ("sums", 12), ("mean", 28 + 8)]
)
def test_bytes_per_parameter_in_numbers(turn: str, expected: int) -> None:
    """Adam's, and the 4 that clearing a gradient writes."""
    for zero_grads in (0, 1):
        problem = Problem((0,), turns=(turn,), zero_grads=zero_grads)
        before = counters()
        _launch(problem)
        moved = counters().since(before)
        assert moved.bytes == (expected + 4 * zero_grads) * problem.numel.sum()


def test_options_on_zeros_subnormals_infinities_and_nan() -> None:
    _check_against_cpu(_with_options("scaled", special=True))


@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("field", ["grad", "ema", "grad_sum"])
def test_options_at_every_4_byte_offset(field: str, shift: int) -> None:
    problem = _with_options("turns and zeroing", shifts={field: shift})
    before = counters()
    _check_against_cpu(problem)
    moved = counters().since(before)
    assert moved.bytes == problem.bytes()
    aligned = problem.records[field] % 16 == 0
    assert moved.vector_bytes == problem.bytes_in_full_tiles(aligned)
    assert (moved.vector_bytes == 0) == (field != "ema")


def test_as_the_backend_of_an_optimizer() -> None:
    def train(backend: object) -> tuple[list[torch.Tensor], sf.StackelbergAdamW]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n)) for n in SIZES]
        groups = [
            {"params": params[:6], "role": "head", "rule": "sgd", "momentum": 0.9},
            {"params": params[6:]},
        ]
        opt = sf.StackelbergAdamW(groups, lr=1e-3, backend=backend)
        for i in range(4):
            for k, p in enumerate(params):
                p.grad = None if k % 3 == i % 3 else torch.randn(p.numel() + i)[i:]
            opt.step(role=(None, "head", "body", None)[i])
        return params, opt

    ours, opt = train(HostCudaBackend("shuffled", seed=5))
    expected, _ = train("cpu")
    assert opt.backend == "cuda-on-host"
    assert opt.launches == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_float_flags_are_those_of_the_cpu_kernel() -> None:
    flags = re.search(r"CXXFLAGS = \[(.*?)\n\]", (CSRC.parent / "setup.py").read_text(), re.DOTALL)[
        1
    ]
    in_setup = {
        f for f in re.findall(r'"(-f[\w=-]+)"', flags) if f not in ("-fPIC", "-fvisibility=hidden")
    }
    assert in_setup == set(FLOAT_FLAGS)


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """The program host_cuda/sanitized.cpp."""
    try:
        return build(SANITIZED)
    except RuntimeError as error:
        if re.search(r"cannot find.*(asan|ubsan)", str(error)):
            pytest.skip("the compiler has no sanitizer libraries")
        raise


def _run_sanitized(program: Path, *arguments: str) -> subprocess.CompletedProcess:
    # leaks: a launch that is stopped abandons its fibers' stacks
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "LD_PRELOAD": ""}
    return subprocess.run(
        [str(program), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patience(120),
    )


@pytest.mark.slow
@pytest.mark.xdist_group("sanitizers")
def test_sanitizers_find_nothing(sanitized: Path) -> None:
    done = _run_sanitized(sanitized)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout
    assert "runtime error" not in done.stderr


@pytest.mark.slow
@pytest.mark.xdist_group("sanitizers")
@pytest.mark.parametrize(
    "mistake, report",
    [
        ("overrun-cuda", "heap-buffer-overflow.*READ of size 4.*update_partial_tile"),
        ("overrun-cpu", "heap-buffer-overflow.*update_tile"),
        ("overrun-write", "heap-buffer-overflow.*WRITE of size 4.*store1"),
        ("misaligned", "load of misaligned address"),
    ],
)
def test_sanitizers_catch_a_planted_mistake(sanitized: Path, mistake: str, report: str) -> None:
    done = _run_sanitized(sanitized, mistake)
    assert done.returncode != 0
    assert re.search(report, done.stderr, re.DOTALL), done.stderr
