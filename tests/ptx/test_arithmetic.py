"""Integers (section 9.7.1) and floating-point numbers of one rounding (section 9.7.3), by their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from .definitions import F16, F32, F64, FORMATS, NAN, Format, floats, integers, pairs, same, wrapped
from .lanes import Fault
from .one_instruction import apply, kernel, run
from .parser import NotUnderstood

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

INTEGERS = {f"{kind}{bits}": np.dtype(f"{kind.replace('s', 'i')}{bits // 8}").type
            for kind in "us" for bits in (16, 32, 64)}  # fmt: skip
BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("type_", INTEGERS)
def test_integers_of_every_width_wrap_around(type_: str) -> None:
    dtype = INTEGERS[type_]
    a, b = pairs(integers(dtype))
    for opcode, definition in BINARY.items():
        expected = [wrapped(definition(int(x), int(y)), dtype) for x, y in zip(a, b, strict=True)]
        assert apply(f"{opcode}.{type_}", dtype, a, b).tolist() == expected, opcode
    c = np.roll(a, 5)
    expected = [wrapped(int(x) * int(y) + int(z), dtype) for x, y, z in zip(a, b, c, strict=True)]
    assert apply(f"mad.lo.{type_}", dtype, a, b, c).tolist() == expected


@pytest.mark.parametrize("type_", ["u16", "s16", "u32", "s32"])
def test_wide_products_are_exact(type_: str) -> None:
    dtype = INTEGERS[type_]
    wide = np.dtype(f"{np.dtype(dtype).kind}{2 * np.dtype(dtype).itemsize}").type
    a, b = pairs(integers(dtype))
    products = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    assert apply(f"mul.wide.{type_}", wide, a, b).tolist() == products
    c = np.resize(integers(wide), a.shape)
    expected = [wrapped(p + int(z), wide) for p, z in zip(products, c, strict=True)]
    assert apply(f"mad.wide.{type_}", wide, a, b, c).tolist() == expected


@pytest.mark.parametrize("type_", INTEGERS)
def test_quotients_go_towards_zero_and_remainders_are_what_is_left(type_: str) -> None:
    dtype = INTEGERS[type_]
    a, b = pairs(integers(dtype))
    kept = (b != 0) & ~((a == np.iinfo(dtype).min) & (b == wrapped(-1, dtype)) & (type_[0] == "s"))
    a, b = a[kept], b[kept]

    def quotient(x: int, y: int) -> int:
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)

    values = [(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    assert apply(f"div.{type_}", dtype, a, b).tolist() == [quotient(x, y) for x, y in values]
    expected = [x % y for x, y in values if x >= 0 and y > 0]
    kept = (a >= 0) & (b > 0)
    assert apply(f"rem.{type_}", dtype, a[kept], b[kept]).tolist() == expected


LEFT_OPEN = {
    "by zero": ("7", "0", {"div.s32", "div.u32", "rem.s32", "rem.u32"}),
    "a quotient beyond the type": ("-2147483648", "-1", {"div.s32", "rem.s32"}),
    "a negative dividend": ("-7", "2", {"rem.s32"}),
    "a negative divisor": ("7", "-2", {"rem.s32"}),
    "positive numbers": ("7", "2", set()),
}


@pytest.mark.parametrize("opcode", ["div.s32", "div.u32", "rem.s32", "rem.u32"])
@pytest.mark.parametrize("case", LEFT_OPEN)
def test_what_the_isa_leaves_open_may_be_computed_and_must_not_decide(
    case: str, opcode: str
) -> None:
    """Of 64 bits too; by registers and by constants."""
    a, b, is_open = LEFT_OPEN[case]
    for wide in (opcode, opcode.replace("32", "64")):
        r = "%d" if wide.endswith("64") else "%r"
        x = str(-(1 << 63)) if r == "%d" and a == "-2147483648" else a
        move = f"mov.b{wide[-2:]}"
        for given in (f"{x}, {b}", f"{r}2, {r}3"):
            body = f"{move} {r}2, {x};\n{move} {r}3, {b};\n{wide} {r}1, {given};\n"
            run(body)
            decided = body + f"setp.eq.{wide[-3:]} %p1, {r}1, 5;\n@%p1 ret;"
            if opcode not in is_open:
                run(decided)
                continue
            with pytest.raises(Fault, match="predicate is undefined"):
                run(decided)


def test_signs_of_integers() -> None:
    for type_ in ("s16", "s32", "s64"):
        dtype = INTEGERS[type_]
        a = integers(dtype)
        assert apply(f"neg.{type_}", dtype, a).tolist() == [wrapped(-int(x), dtype) for x in a]
        assert apply(f"abs.{type_}", dtype, a).tolist() == [wrapped(abs(int(x)), dtype) for x in a]


OF_FLOATS = {
    "add.rn": Format.add,
    "add": Format.add,
    "sub.rn": Format.subtract,
    "mul.rn": Format.multiply,
    "div.rn": Format.divide,
}


def random_words(form: Format, count: int, *, seed: int) -> list[int]:
    random = np.random.default_rng(seed)
    return random.integers(0, 1 << form.width, count, f"u{form.width // 8}").tolist()


@pytest.mark.parametrize("opcode", OF_FLOATS)
@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_sums_products_and_quotients_are_rounded_to_nearest(type_: str, opcode: str) -> None:
    form, dtype = FORMATS[type_], {"f32": np.uint32, "f64": np.uint64}[type_]
    a, b = pairs(np.array(floats(form), dtype))
    close = np.array(random_words(form, 2000, seed=1), dtype)  # of like magnitude: they cancel
    near = close ^ np.array(random_words(form, 2000, seed=2), dtype) % dtype(1 << form.digits)
    a = np.concatenate([a, random_words(form, 1000, seed=3), close]).astype(dtype)
    b = np.concatenate([b, random_words(form, 1000, seed=4), near]).astype(dtype)
    expected = [OF_FLOATS[opcode](form, int(x), int(y)) for x, y in zip(a, b, strict=True)]
    assert same(apply(f"{opcode}.{type_}", dtype, a, b), expected, form)


@pytest.mark.parametrize("opcode", ["add", "sub"])
@pytest.mark.parametrize("type_", ["f16", "bf16"])
def test_the_first_operand_of_16_bits_is_widened_before_a_sum_is_rounded(
    type_: str, opcode: str
) -> None:
    """Section 9.7.5."""
    form, definition = FORMATS[type_], OF_FLOATS[f"{opcode}.rn"]
    a = np.array([*floats(form), *random_words(form, 6000, seed=5)], np.uint16)
    special = np.resize(np.array(floats(F32), np.uint32), a.size // 2)
    c = np.concatenate(
        [special, np.array(random_words(F32, a.size - special.size, seed=6), np.uint32)]
    )
    c = np.random.default_rng(7).permutation(c)

    def widened(word: int) -> int:
        if form.is_nan(word):
            return F32.infinity | 1
        if form.is_infinite(word):
            return F32.signed(F32.infinity, form.sign(word))
        whole = F32.rounded(form.units(word) << (F32.least - form.least), F32.least)
        return F32.signed(F32.magnitude(whole), form.sign(word))

    expected = [definition(F32, widened(int(x)), int(y)) for x, y in zip(a, c, strict=True)]
    assert same(apply(f"{opcode}.rn.f32.{type_}", np.uint32, a, c), expected, F32)


@pytest.mark.parametrize("type_", ["f32", "f64"])
def test_roots_and_reciprocals_are_rounded_to_nearest(type_: str) -> None:
    form, dtype = FORMATS[type_], {"f32": np.uint32, "f64": np.uint64}[type_]
    a = np.array([*floats(form), *random_words(form, 3000, seed=5)], dtype)
    roots, reciprocals = apply(f"sqrt.rn.{type_}", dtype, a), apply(f"rcp.rn.{type_}", dtype, a)
    assert same(roots, [form.root(int(x)) for x in a], form)
    assert same(reciprocals, [form.divide(form.one, int(x)) for x in a], form)


def test_the_roots_of_all_significands_of_float32() -> None:
    """Two binades are all that there is: the root of 4 x is twice that of x."""
    words = np.arange(0x3F800000, 0x40800000, dtype=np.uint32)
    roots = apply("sqrt.rn.f32", np.uint32, words).view(np.float32).astype(np.float64)
    # half an ulp of a number in [1, 2): both squares have 50 bits, exact in float64
    half = 2.0**-24
    x = words.view(np.float32).astype(np.float64)
    assert ((roots - half) ** 2 < x).all()
    assert ((roots + half) ** 2 > x).all()


def test_of_two_zeros_the_positive_one_is_larger_and_a_number_is_preferred_to_nan() -> None:
    for type_, form in (("f32", F32), ("f64", F64)):
        dtype = {"f32": np.uint32, "f64": np.uint64}[type_]
        a, b = pairs(np.array(floats(form), dtype))

        def order(word: int, form: Format = form) -> int:
            return -form.magnitude(word) - 1 if form.sign(word) else form.magnitude(word)

        def extreme(x: int, y: int, choose: Callable, keeps_nan: bool, form: Format = form) -> int:
            numbers = [w for w in (x, y) if not form.is_nan(w)]
            if not numbers or (keeps_nan and len(numbers) < 2):
                return NAN
            return choose(numbers, key=order)

        for name, choose in (("min", min), ("max", max)):
            for modifier in ("", ".NaN"):
                expected = [
                    extreme(int(x), int(y), choose, bool(modifier))
                    for x, y in zip(a, b, strict=True)
                ]
                assert same(apply(f"{name}{modifier}.{type_}", dtype, a, b), expected, form)


def test_neg_and_abs_change_the_sign_bit() -> None:
    for type_, form, dtype in (
        ("f16", F16, np.uint16),
        ("f32", F32, np.uint32),
        ("f64", F64, np.uint64),
    ):
        a = np.array([w for w in floats(form) if not form.is_nan(w)], dtype)
        upper = 1 << (form.width - 1)
        assert apply(f"neg.{type_}", dtype, a).tolist() == [int(x) ^ upper for x in a]
        assert apply(f"abs.{type_}", dtype, a).tolist() == [int(x) & ~upper for x in a]
    pairs_ = np.array([0x80018002, 0x00018002, 0xFC00BC00], np.uint32)
    for type_ in ("f16x2", "bf16x2"):
        assert apply(f"abs.{type_}", np.uint32, pairs_).tolist() == [
            0x00010002,
            0x00010002,
            0x7C003C00,
        ]
        assert apply(f"neg.{type_}", np.uint32, pairs_).tolist() == [
            0x00010002,
            0x80010002,
            0x7C003C00,
        ]


@pytest.mark.parametrize("opcode", ["add.rn", "sub.rn", "mul.rn", "fma.rn"])
def test_pairs_of_float32_are_computed_half_by_half(opcode: str) -> None:
    random = np.random.default_rng(0)
    count = 3 if opcode == "fma.rn" else 2
    special = np.array(floats(F32), np.uint32).view(np.float32)[: len(floats(F32)) // 2 * 2]
    usual = [random.normal(size=64).astype(np.float32) for _ in range(count)]
    operands = [np.concatenate([random.permutation(special), x]) for x in usual]
    alone = apply(f"{opcode}.f32", np.uint32, *(x.view(np.uint32) for x in operands))
    both = apply(f"{opcode}.f32x2", np.uint64, *(x.view(np.uint64) for x in operands))
    assert both.view(np.uint32).tolist() == alone.tolist()


def test_constants_alone_are_computed() -> None:
    assert apply("add.s32", np.int32, "-5", "3").tolist() == [-2]
    assert apply("fma.rn.f32", np.uint32, "0f3F800000", "0f3F800000", "0f3F800000") == 0x40000000
    assert apply("div.s32", np.int32, "-7", "2").tolist() == [-3]
    assert apply("sqrt.rn.f64", np.uint64, "0d4010000000000000") == 0x4000000000000000
    assert apply("neg.f32", np.uint32, "0f00000000") == 0x80000000


@pytest.mark.parametrize(
    "instruction",
    [
        "add.sat.s32 %r1, %r2, %r3",
        "add.cc.u32 %r1, %r2, %r3",
        "add.rz.f32 %r1, %r2, %r3",
        "add.ftz.f32 %r1, %r2, %r3",
        "add.f16 %h1, %h2, %h3",
        "add.f32.f16 %r1, %h2, %r3",
        "add.rz.f32.f16 %r1, %h2, %r3",
        "add.rn.f32.f32 %r1, %r2, %r3",
        "fma.rn.f32.f16 %r1, %h2, %h3, %r4",
        "mul.hi.u32 %r1, %r2, %r3",
        "mul.b32 %r1, %r2, %r3",
        "mad.rn.f32 %r1, %r2, %r3, %r4",
        "fma.rn.f64 %d1, %d2, %d3, %d4",
        "fma.rn.sat.f32 %r1, %r2, %r3, %r4",
        "div.full.f32 %r1, %r2, %r3",
        "div.approx.f32 %r1, %r2, %r3",
        "sqrt.approx.f32 %r1, %r2",
        "rcp.approx.f32 %r1, %r2",
        "max.ftz.f32 %r1, %r2, %r3",
        "max.f16 %h1, %h2, %h3",
        "min.s16x2 %r1, %r2, %r3",
        "ex2.approx.f32 %r1, %r2",
        "add.s32 %r1, %r2",
        "add.s32 %r1, %r2, nothing",
        "add.f32 %r1, %r2, 1",
        "add.f32 %r1, %r2, 0d3FF0000000000000",
        "add.s64 %d1, %d2, %r3",
        "add.s32 %q1, %r2, %r3",
    ],
)
def test_a_spelling_that_is_not_known_is_an_error_that_names_it(instruction: str) -> None:
    with pytest.raises(NotUnderstood) as raised:
        kernel(instruction + ";")
    assert instruction in str(raised.value)
