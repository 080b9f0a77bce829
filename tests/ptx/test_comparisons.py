"""Comparison and selection (section 9.7.6)."""

from __future__ import annotations

import operator

import numpy as np
import pytest

from .definitions import FORMATS, floats, integers, pairs
from .lanes import Fault
from .one_instruction import apply, run
from .parser import NotUnderstood

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

ORDERS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
OF_UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def test_integers_are_compared_as_their_type_says() -> None:
    for kind in "bus":
        for size in (2, 4, 8):
            dtype = np.dtype(f"{'i' if kind == 's' else 'u'}{size}").type
            a, b = pairs(integers(dtype))
            orders = ORDERS if kind != "u" else ORDERS | OF_UNSIGNED
            for name in ("eq", "ne") if kind == "b" else orders:
                expected = [orders[name](int(x), int(y)) for x, y in zip(a, b, strict=True)]
                found = apply(f"setp.{name}.{kind}{8 * size}", bool, a, b)
                assert found.tolist() == expected, (kind, size, name)


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_nan_makes_a_comparison_false_or_with_u_true(type_: str) -> None:
    form = FORMATS[type_]
    a, b = pairs(np.array(floats(form), f"u{form.width // 8}"))
    for name in (*ORDERS, *(f"{order}u" for order in ORDERS), "nan", "num"):

        def holds(x: int, y: int, name: str = name) -> bool:
            is_unordered = form.is_nan(x) or form.is_nan(y)
            if name in ("nan", "num"):
                return is_unordered == (name == "nan")
            if is_unordered:
                return name.endswith("u")
            numbers = ((-1) ** form.sign(w) * min(form.magnitude(w), form.infinity) for w in (x, y))
            return ORDERS[name.removesuffix("u")](*numbers)

        expected = [holds(int(x), int(y)) for x, y in zip(a, b, strict=True)]
        assert apply(f"setp.{name}.{type_}", bool, a, b).tolist() == expected, name


def test_selections_keep_bits() -> None:
    nan = np.array([0x7F812345, 0x80000000], np.uint32)
    choice = np.array([True, False])
    assert apply("selp.f32", np.uint32, nan, nan[::-1].copy(), choice).tolist() == [nan[0], nan[0]]
    assert apply("selp.b64", np.uint64, "7", "9", choice).tolist() == [7, 9]
    assert apply("selp.u16", np.uint16, "7", "9", choice).tolist() == [7, 9]
    sign = integers(np.int32)
    for type_ in ("f32", "b32", "u32", "s32"):
        a, b = np.full(len(sign), nan[0]), np.full(len(sign), nan[1])
        found = apply(f"slct.{type_}.s32", np.uint32, a, b, sign)
        assert found.tolist() == [int(nan[0] if s >= 0 else nan[1]) for s in sign]


def test_the_operand_that_is_not_chosen_may_be_undefined() -> None:
    body = "setp.lt.u32 %p1, %t, {0};\nselp.b32 %r3, %r1, %r2, %p1;\nsetp.eq.s32 %p2, %r3, 0;\n@%p2 ret;"
    run("mov.u32 %r1, 0;\n" + body.format(32))
    with pytest.raises(Fault, match="predicate is undefined"):
        run("mov.u32 %r1, 0;\n" + body.format(31))
    run("mov.u32 %r2, 0;\n" + body.format(0))
    with pytest.raises(Fault, match="predicate is undefined"):
        run("selp.b32 %r3, 1, 2, %p7;\nsetp.eq.s32 %p2, %r3, 0;\n@%p2 ret;")


@pytest.mark.parametrize(
    "instruction",
    [
        "setp.lt.b32 %p1, %r2, %r3",
        "setp.lo.s32 %p1, %r2, %r3",
        "setp.ltu.s32 %p1, %r2, %r3",
        "setp.lt.ftz.f32 %p1, %r2, %r3",
        "setp.lt.and.s32 %p1, %r2, %r3, %p2",
        "setp.lt.s32 %p1|%p2, %r2, %r3",
        "setp.eq.f16 %p1, %h2, %h3",
        "set.lt.u32.s32 %r1, %r2, %r3",
        "selp.pred %p1, %p2, %p3, %p4",
        "selp.b32 %r1, %r2, %r3, %r4",
        "slct.f32.f32 %r1, %r2, %r3, %r4",
        "slct.f64.s32 %d1, %d2, %d3, %r4",
    ],
)
def test_a_spelling_that_is_not_known_is_an_error_that_names_it(instruction: str) -> None:
    with pytest.raises(NotUnderstood) as raised:
        run(instruction + ";")
    assert instruction in str(raised.value)
