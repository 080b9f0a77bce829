"""cvt, mov and cvta (section 9.7.9)."""

from __future__ import annotations

import numpy as np
import pytest

from .definitions import (
    F32,
    F64,
    FORMATS,
    NAN,
    Format,
    floats,
    integers,
    same,
    words,
    wrapped,
)
from .lanes import Fault
from .one_instruction import apply, kernel, run
from .parser import NotUnderstood

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

DTYPES = {f"{kind}{8 * size}": np.dtype(f"{kind.replace('s', 'i')}{size}").type
          for kind in "us" for size in (1, 2, 4, 8)}  # fmt: skip
WORDS = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "f64": np.uint64}


def test_integers_are_extended_or_cut() -> None:
    """A register wider than the type takes the extension too."""
    for from_, source in DTYPES.items():
        x = integers(source)
        for to, target in DTYPES.items():
            for register in ("16", "32", "64"):
                wide = DTYPES[f"{to[0]}{register}"]
                if np.dtype(wide).itemsize < np.dtype(target).itemsize:
                    continue
                found = apply(f"cvt.{to}.{from_}", wide, x)
                assert found.tolist() == [wrapped(int(v), target) for v in x], (to, from_, register)


def test_the_upper_bits_of_a_wider_source_do_not_count() -> None:
    x = integers(np.uint64)
    assert apply("cvt.u32.u16", np.uint32, x.astype(np.uint32)).tolist() == [
        int(v) % 65536 for v in x.astype(np.uint32)
    ]
    assert apply("cvt.s32.s16", np.int32, x).tolist() == [wrapped(int(v), np.int16) for v in x]
    with pytest.raises(
        NotUnderstood, match=r"cvt.u64.u32 %d1, %h1.*narrower|u32 of the register %h1"
    ):
        kernel("cvt.u64.u32 %d1, %h1;")


def near_integers(form: Format) -> list[int]:
    """Words around the limits of all types, halves, and others."""
    limits = [float(sign << k) for k in (0, 7, 8, 15, 16, 31, 32, 63, 64, 70) for sign in (1, -1)]
    values = np.array([*limits, 0.5, -0.5, 1.5, -1.5, 2.5, 1e9], f"f{form.width // 8}")
    exact = values.view(f"u{form.width // 8}").astype(object)
    return sorted({int(w) + d for w in exact for d in (-1, 0, 1)} | set(floats(form)))


@pytest.mark.parametrize("from_", ["f32", "f64"])
@pytest.mark.parametrize("to", ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"])
def test_numbers_become_integers_towards_zero_within_the_limits(to: str, from_: str) -> None:
    form, dtype = FORMATS[from_], DTYPES[to]
    limits = np.iinfo(dtype)

    def whole(word: int) -> int:
        if form.is_nan(word):
            is_wide = limits.bits == 64 or form is F64
            return wrapped(1 << (limits.bits - 1), dtype) if is_wide else 0
        if form.is_infinite(word):
            return int(limits.min if form.sign(word) else limits.max)
        magnitude = abs(form.units(word)) >> form.least
        value = -magnitude if form.sign(word) else magnitude
        return min(max(value, int(limits.min)), int(limits.max))

    given = near_integers(form)
    registers = DTYPES[f"{to[0]}{max(limits.bits, 16)}"]
    found = apply(f"cvt.rzi.{to}.{from_}", registers, words(given, form))
    assert found.tolist() == [whole(w) for w in given]


@pytest.mark.parametrize("from_", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("to", ["f32", "f64"])
def test_integers_become_the_nearest_number(to: str, from_: str) -> None:
    form, dtype = FORMATS[to], DTYPES[from_]
    bits = np.iinfo(dtype).bits
    random = np.random.default_rng(0)
    odd = random.integers(1 << (form.digits - 1), 1 << form.digits, 3000).astype(object) * 2 + 1
    # half-way between two numbers, and next to that
    shifts = random.integers(0, 64, 3000)
    half_way = [
        (int(n) << int(k)) + d for n, k in zip(odd, shifts, strict=True) for d in (-1, 0, 1)
    ]
    x = np.array([wrapped(n % (1 << bits), dtype) for n in half_way], dtype)
    x = np.concatenate([x, integers(dtype)])
    found = apply(f"cvt.rn.{to}.{from_}", WORDS[to], x)
    assert same(found, [form.rounded(int(n) << form.least, form.least) for n in x], form)


def random_float32() -> list[int]:
    return np.random.default_rng(2).integers(0, 1 << 32, 5000, np.uint32).tolist()


def doubles_around_float32() -> list[int]:
    """Float32s, what is half-way between them, and the float64s next to those."""
    random = np.random.default_rng(1)
    word = random.integers(0, 1 << 32, 3000, np.uint32)
    word = np.concatenate([word, np.array(floats(F32), np.uint32), np.arange(100, dtype=np.uint32)])
    found = set(floats(F64))
    for w in word.tolist():
        if F32.magnitude(w) >= F32.infinity:
            continue
        for n in (2 * F32.units(w), 2 * F32.units(w) + 1, 2 * F32.units(w) - 1):
            exact = F64.rounded(n << (F64.least - F32.least - 1), F64.least)
            found |= {exact, exact + 1, exact - 1 if F64.magnitude(exact) else exact}
        step = 1 << (F64.digits - F32.digits)
        exact = F64.rounded(F32.units(w) << (F64.least - F32.least), F64.least)
        found |= {exact + step // 2 + d for d in (-1, 0, 1)}
    return sorted(w for w in found if 0 <= w < 1 << 64)


@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_float64_becomes_float32(mode: str) -> None:
    given = doubles_around_float32()

    def narrowed(word: int) -> int:
        if F64.is_nan(word):
            return NAN
        if F64.is_infinite(word):
            return F32.signed(F32.infinity, F64.sign(word))
        magnitude = abs(F64.units(word))
        return F32.signed(
            F32.rounded(magnitude, F64.least, towards_zero=mode == "rz"), F64.sign(word)
        )

    found = apply(f"cvt.{mode}.f32.f64", np.uint32, words(given, F64))
    assert same(found, [narrowed(w) for w in given], F32)


@pytest.mark.parametrize(
    "to, from_", [("f32", "f16"), ("f64", "f16"), ("f32", "bf16"), ("f64", "f32")]
)
def test_a_wider_format_holds_every_number(to: str, from_: str) -> None:
    narrow, wide = FORMATS[from_], FORMATS[to]
    given = list(range(1 << 16)) if narrow.width == 16 else floats(F32) + random_float32()

    def widened(word: int) -> int:
        if narrow.is_nan(word):
            return NAN
        if narrow.is_infinite(word):
            return wide.signed(wide.infinity, narrow.sign(word))
        magnitude = abs(narrow.units(word)) << (wide.least - narrow.least)
        return wide.signed(wide.rounded(magnitude, wide.least), narrow.sign(word))

    found = apply(f"cvt.{to}.{from_}", WORDS[to], words(given, narrow))
    assert same(found, [widened(w) for w in given], wide)


@pytest.mark.parametrize("to", ["f16", "bf16"])
def test_float32_becomes_the_nearest_of_16_bits(to: str) -> None:
    """All numbers of 16 bits, what is half-way between them, and the float32s next to those."""
    form = FORMATS[to]
    found = set(floats(F32))
    for word in range(0, form.infinity, 1):
        ulp = 1 << max(form.units(word).bit_length() - form.digits, 0)
        middle = 2 * form.units(word) + ulp
        scale = F32.least + 1 - form.least
        for n in (2 * form.units(word), middle):
            exact = F32.rounded(n << scale, F32.least + 2)
            found |= {exact, exact + 1, max(exact - 1, 0)}
    given = sorted(found)
    given += [F32.signed(w, 1) for w in given if not F32.sign(w)]

    def narrowed(word: int) -> int:
        if F32.is_nan(word):
            return NAN
        if F32.is_infinite(word):
            return form.signed(form.infinity, F32.sign(word))
        return form.signed(form.rounded(abs(F32.units(word)), F32.least), F32.sign(word))

    got = apply(f"cvt.rn.{to}.f32", np.uint16, words(given, F32))
    assert same(got, [narrowed(w) for w in given], form)


def test_moves_keep_bits_and_pack_the_lowest_first() -> None:
    x = np.array([*floats(F32), 0x7F812345], np.uint32)
    assert apply("mov.f32", np.uint32, x).tolist() == x.tolist()
    assert apply("mov.b32", np.uint32, "0f7F812345") == 0x7F812345
    out = np.zeros(8, np.uint32)
    run(
        "mov.b64 %d1, 0x1122334455667788;\n"
        "mov.b64 {%r1, %r2}, %d1;\nmov.b64 {_, %r3}, %d1;\n"
        "mov.b32 {%h1, %h2}, %r1;\nmov.b32 %r4, {%h2, %h1};\n"
        "mov.b64 %d2, {%h1, %h2, %h1, %h2};\nmov.b64 {%r5, %r6}, %d2;\n"
        "st.global.v4.b32 [%a0], {%r1, %r2, %r3, %r4};\nst.global.v2.b32 [%a0+16], {%r5, %r6};",
        out,
    )
    assert [hex(v) for v in out[:6]] == [
        *("0x55667788", "0x11223344", "0x11223344", "0x77885566"),
        *("0x55667788", "0x55667788"),
    ]


def test_special_registers_say_where_a_thread_is() -> None:
    out = np.zeros((128, 4), np.uint32)
    run(
        "mul.wide.u32 %d1, %i, 16;\nadd.s64 %d2, %a0, %d1;\nmov.u32 %r1, %laneid;\n"
        "mov.u32 %r2, %ntid.x;\nmov.u32 %r3, %nctaid.x;\nmov.u32 %r4, %ntid.y;\n"
        "add.s32 %r4, %r4, %tid.z;\nst.global.v4.b32 [%d2], {%r1, %r2, %r3, %r4};",
        out,
        threads=64,
        grid=2,
    )
    assert out.tolist() == [[k % 32, 64, 2, 1] for k in range(128)]
    with pytest.raises(NotUnderstood, match=r"mov.u64 %d1, %clock64"):
        kernel("mov.u64 %d1, %clock64;")


def test_what_is_packed_keeps_its_undefined_parts() -> None:
    """Compilers pack what they take no bits of."""
    pack = "mov.b64 %d1, {%r1, %r2};\n"
    unpack = "mov.b64 {%r3, %r4}, %d1;\nsetp.eq.s32 %p1, %r4, 0;\n@%p1 ret;"
    run("mov.u32 %r1, 1;\nmov.u32 %r2, 2;\n" + pack + unpack)
    run("mov.u32 %r2, 2;\n" + pack + unpack)
    whole = "setp.eq.s64 %p2, %d1, 0;\n@%p2 ret;"
    for given in ("", "mov.u32 %r1, 1;\n"):
        with pytest.raises(Fault, match="predicate is undefined"):
            run(given + pack + unpack)
    for given in ("mov.u32 %r2, 2;\n", "mov.u32 %r1, 1;\n"):
        with pytest.raises(Fault, match="predicate is undefined"):
            run(given + pack + whole)
    with pytest.raises(Fault, match="stores what is undefined"):
        run("mov.u32 %r2, 2;\n" + pack + "st.global.b64 [%a0], %d1;", np.zeros(8, np.uint64))


def test_undefined_parts_go_by_lanes() -> None:
    """A lane in which the whole is written again is defined; so is one whose other part is taken."""
    some = (
        "setp.lt.u32 %p1, %i, 5;\nmov.u32 %r2, 2;\n@%p1 mov.u32 %r1, 1;\nmov.b64 %d1, {%r1, %r2};\n"
    )
    decides = "setp.eq.s64 %p2, %d1, 0;\n@%p2 ret;"
    with pytest.raises(Fault, match="predicate is undefined"):
        run(some + decides)
    run(some + "@!%p1 mov.b64 %d1, 3;\n" + decides)
    run(
        some
        + "@%p1 bra END;\nmov.b64 {_, %r1}, %d1;\nmov.b64 %d1, {%r1, %r2};\n"
        + decides
        + "\nEND:"
    )


@pytest.mark.parametrize(
    "instruction",
    [
        "cvt.rni.s32.f32 %r1, %r2",
        "cvt.rzi.s32.f16 %r1, %h2",
        "cvt.sat.u8.s32 %h1, %r2",
        "cvt.rn.f16.s32 %h1, %r2",
        "cvt.rn.f16.f64 %h1, %d2",
        "cvt.rn.f16.f32 %r1, %r2",
        "cvt.rn.f32.f64 %h1, %d2",
        "cvt.rn.f16x2.f32 %r1, %r2, %r3",
        "cvt.f32.e4m3 %r1, %h2",
        "cvt.u32.u64 %h1, %d2",
        "cvta.shared.u64 %d1, %d2",
        "cvta.to.shared.u64 %d1, %d2",
        "mov.b128 %d1, %d2",
        "mov.b32 {%r1, %r2}, %r3",
        "mov.u32 %d1, %r2",
        "mov.u32 %r1, outside",
    ],
)
def test_a_spelling_that_is_not_known_is_an_error_that_names_it(instruction: str) -> None:
    with pytest.raises(NotUnderstood) as raised:
        run(instruction + ";")
    assert instruction in str(raised.value)
