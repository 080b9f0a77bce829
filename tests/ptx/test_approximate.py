"""rcp.approx.ftz and rsqrt.approx.ftz (section 9.7.3): what the ISA fixes, and errors within its bounds elsewhere."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from .approximate import RECIPROCAL_ROOT_ERROR, RECIPROCAL_ULPS, Unit, WorstUnit
from .definitions import F32, NAN, same
from .kernel import Kernel
from .launch import Launch
from .memory import Memory
from .one_instruction import apply, kernel

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

INF, MINUS = F32.infinity, 1 << 31
SMALLEST_NORMAL = 1 << 23


def flushed(word: int) -> int:
    """Subnormal numbers are zeros of their sign, as operands and as results."""
    return word & MINUS if F32.magnitude(word) < SMALLEST_NORMAL else word


def test_what_the_tables_of_the_isa_fix() -> None:
    nan, tiny, huge = INF | 1, 1, INF - 1
    reciprocals = {
        0: INF,
        MINUS: MINUS | INF,
        INF: 0,
        MINUS | INF: MINUS,
        nan: NAN,
        tiny: INF,
        MINUS | tiny: MINUS | INF,
        huge: 0,  # the reciprocal would be subnormal
        MINUS | huge: MINUS,
        F32.one: F32.one,
    }
    roots = {
        0: INF,
        MINUS: MINUS | INF,
        INF: 0,
        MINUS | INF: NAN,
        nan: NAN,
        tiny: INF,
        MINUS | tiny: MINUS | INF,
        MINUS | F32.one: NAN,
        F32.one: F32.one,
    }
    for opcode, expected in (("rcp", reciprocals), ("rsqrt", roots)):
        given = np.array(list(expected), np.uint32)
        found = apply(f"{opcode}.approx.ftz.f32", np.uint32, given)
        assert same(found, list(expected.values()), F32)


def test_results_are_the_nearest_unless_a_launch_has_another_unit() -> None:
    random = np.random.default_rng(0)
    # reciprocals of these are normal numbers
    given = random.integers(SMALLEST_NORMAL, 253 << 23, 4000, np.uint32)
    found = apply("rcp.approx.ftz.f32", np.uint32, given)
    assert same(found, [flushed(F32.divide(F32.one, int(w))) for w in given], F32)
    roots = apply("rsqrt.approx.ftz.f32", np.uint32, given)
    for word, root in zip(given.tolist(), roots.tolist(), strict=True):
        # the middles to both neighbours are on either side of the exact root
        below, above = (F32.value(root) + F32.value(root + d) for d in (-1, 1))
        assert below**2 / 4 * F32.value(word) < 1 < above**2 / 4 * F32.value(word)


def by_unit(opcode: str, given: np.ndarray, unit: Unit) -> np.ndarray:
    found = given.copy()
    body = (
        "mul.wide.u32 %d1, %i, 4;\nadd.s64 %d1, %a0, %d1;\nld.global.b32 %r1, [%d1];\n"
        f"{opcode}.approx.ftz.f32 %r2, %r1;\nst.global.b32 [%d1], %r2;"
    )
    memory = Memory()
    memory.add_array("numbers", found)
    decoded: Kernel = kernel(body, 1)
    address = np.uint64(found.ctypes.data).tobytes()
    Launch(decoded, len(given) // 32, address, memory, unit=unit).run()
    return found


@pytest.mark.parametrize("side", [-1, 1])
def test_the_worst_units_stay_within_the_bounds_and_use_them(side: int) -> None:
    random = np.random.default_rng(1)
    given = random.integers(64 << 23, 190 << 23, 1024, np.uint32)
    unit = WorstUnit(lambda count: np.full(count, side))
    reciprocals, roots = (by_unit(opcode, given, unit) for opcode in ("rcp", "rsqrt"))
    errors = []
    for word, reciprocal, root in zip(
        *(x.tolist() for x in (given, reciprocals, roots)), strict=True
    ):
        exact = 1 / F32.value(word)
        ulp = (
            Fraction(1, 1 << 23)
            * Fraction(2) ** (F32.magnitude(F32.divide(F32.one, word)) >> 23)
            / 2**127
        )
        assert abs(F32.value(reciprocal) - exact) <= RECIPROCAL_ULPS * ulp
        assert (F32.value(reciprocal) > exact) == (side > 0) or F32.value(reciprocal) == exact
        error = float(F32.value(root)) * float(F32.value(word)) ** 0.5 - 1
        assert abs(error) <= RECIPROCAL_ROOT_ERROR * (1 + 1e-6)
        errors.append(error * side)
    assert max(errors) > 0.9 * RECIPROCAL_ROOT_ERROR
    assert min(errors) > 0
