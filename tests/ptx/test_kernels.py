"""What nvcc and Triton emit, executed: the bits of the CPU kernel, in every order of blocks and warps.

`make test` runs a selection: every kind of launch of both compilers once. `make ptx` runs all rules, schemes, shifts
and orders.
"""

from __future__ import annotations

from typing import Any

import pytest
from cases import Options, groups_of, kernel_options
from kernel_problem import FIELDS, TURNS, Problem

from ptx.backends import PtxCudaBackend, PtxTritonBackend
from ptx.interpreted import Interpreted
from ptx.launch import BACKWARDS, SERIAL, TOGETHER, interleaved
from ptx.launch_cases import CASES, SCHEMES, of_scheme, of_triton, same_steps
from ptx.problems import updated_by
from ptx.test_in_range import UNITS
from stackelberg_fused.groups.rules import RULES

BACKENDS = {"nvcc": PtxCudaBackend, "triton": PtxTritonBackend}
ORDERS = {
    "together": TOGETHER,
    "one after another": SERIAL,
    "the last one first": BACKWARDS,
    "blocks in turns": interleaved(1),
    "warps in turns": interleaved(2, warps=True),
}
by_compiler = pytest.mark.parametrize("compiler", ["nvcc", pytest.param("triton", marks=of_triton)])
by_order = pytest.mark.parametrize("order", ORDERS)
LONG = pytest.mark.ptx


def backend_of(compiler: str, executor: Interpreted) -> Any:
    status = BACKENDS[compiler].status()
    if not status.available:
        pytest.skip(status.reason)
    return BACKENDS[compiler](executor)


def some(names: Any, usual: Any) -> list[Any]:
    """All of them; those that are not usual are for `make ptx`."""
    return [pytest.param(name, marks=() if name in usual else LONG) for name in names]


@by_compiler
@pytest.mark.parametrize("name", some(CASES, set(CASES) - {"everything", "averages"}))
def test_every_kind_of_launch(name: str, compiler: str) -> None:
    case = CASES[name]
    same_steps(case.make, backend_of(compiler, Interpreted()), **case.how)


@LONG
@by_order
@by_compiler
@pytest.mark.parametrize("name", CASES)
def test_every_order_of_blocks_and_warps(name: str, compiler: str, order: str) -> None:
    case = CASES[name]
    same_steps(case.make, backend_of(compiler, Interpreted(ORDERS[order])), 3, **case.how)


@by_compiler
@pytest.mark.parametrize("name", some(SCHEMES, ("8bit", "split16", "stochastic")))
def test_schemes(name: str, compiler: str) -> None:
    same_steps(of_scheme(name), backend_of(compiler, Interpreted()), 2)


@LONG
@by_order
@by_compiler
@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_in_every_order(name: str, compiler: str, order: str) -> None:
    same_steps(of_scheme(name), backend_of(compiler, Interpreted(ORDERS[order])), 3)


@pytest.mark.parametrize("unit", some(UNITS, ("random",)))
@pytest.mark.parametrize("name", ["8bit", "split8-8bit", "8bit-nearest"])
def test_approximate_units_that_are_as_wrong_as_they_may_be(name: str, unit: str) -> None:
    """Triton's kernels ask none: their roots and quotients are single instructions."""
    same_steps(of_scheme(name), backend_of("nvcc", Interpreted(unit=UNITS[unit])), 3)


@LONG
@by_compiler
@pytest.mark.parametrize("options", kernel_options(), ids=str)
def test_every_rule(options: Options, compiler: str) -> None:
    backend = backend_of(compiler, Interpreted())
    same_steps(lambda b: options.ours(groups_of([[5, 4097]]), backend=b), backend, 3)


def check(compiler: str, problem: Problem) -> None:
    executor = Interpreted()
    backend_of(compiler, executor)
    problem.check(updated_by(compiler, executor, problem), problem.updated_by_cpu())


# one that has a kernel of its own in the selection of every compiler, and all of them in one launch
@by_compiler
@pytest.mark.parametrize(
    "rules", some([tuple(RULES[:1]), tuple(RULES)], [tuple(RULES[:1])]), ids=["one", "all"]
)
def test_special_values(rules: tuple[int, ...], compiler: str) -> None:
    check(compiler, Problem(rules, special=True))


@by_compiler
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_all_buffers_at_every_4_byte_offset(shift: int, compiler: str) -> None:
    check(compiler, Problem(RULES[:1], dict.fromkeys(FIELDS, shift)))


@LONG
@by_compiler
@pytest.mark.parametrize("shift", [1, 2, 3])
@pytest.mark.parametrize("field", FIELDS)
def test_every_buffer_at_every_4_byte_offset(field: str, shift: int, compiler: str) -> None:
    check(compiler, Problem(RULES, {field: shift}))


@LONG
@by_compiler
@pytest.mark.parametrize("zero_grads", [0, 1])
@pytest.mark.parametrize("turns", [(), tuple(TURNS)], ids=["no turns", "turns"])
def test_turns_and_clearing(turns: tuple[str, ...], zero_grads: int, compiler: str) -> None:
    absent = tuple(range(1, 10 * len(RULES), 3))
    check(compiler, Problem(RULES, turns=turns, zero_grads=zero_grads, absent=absent))
