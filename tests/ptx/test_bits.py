"""Logic and shifts (section 9.7.8), bit fields and counts (section 9.7.1), permutation (section 9.7.9)."""

from __future__ import annotations

import numpy as np
import pytest

from .definitions import integers, pairs, wrapped
from .lanes import Fault
from .one_instruction import apply, run
from .parser import NotUnderstood

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

UNSIGNED = {16: np.uint16, 32: np.uint32, 64: np.uint64}
AMOUNTS = np.array([*range(70), 127, 255, 256, 257, 300, 2**31, 2**32 - 1], np.uint32)


def test_logic_goes_bit_by_bit() -> None:
    for width, dtype in UNSIGNED.items():
        a, b = pairs(integers(dtype))
        assert (apply(f"and.b{width}", dtype, a, b) == (a & b)).all()
        assert (apply(f"or.b{width}", dtype, a, b) == (a | b)).all()
        assert (apply(f"xor.b{width}", dtype, a, b) == (a ^ b)).all()
        assert (apply(f"not.b{width}", dtype, a) == ~a).all()
    p, q = pairs(np.array([False, True]))
    assert apply("and.pred", bool, p, q).tolist() == [False, False, False, True]
    assert apply("or.pred", bool, p, q).tolist() == [False, True, True, True]
    assert apply("xor.pred", bool, p, q).tolist() == [False, True, True, False]
    assert apply("not.pred", bool, p).tolist() == [True, True, False, False]
    assert apply("and.b32", np.int32, "-16", "0xff").tolist() == [0xF0]


@pytest.mark.parametrize("width", UNSIGNED)
def test_shifts_by_the_width_or_more_leave_nothing_or_the_sign(width: int) -> None:
    unsigned = UNSIGNED[width]
    signed = np.dtype(f"i{width // 8}").type
    x = np.repeat(integers(unsigned), len(AMOUNTS))
    n = np.tile(AMOUNTS, len(x) // len(AMOUNTS))
    both = [(int(v), min(int(k), width)) for v, k in zip(x, n, strict=True)]
    shifted = apply(f"shl.b{width}", unsigned, x, n)
    assert shifted.tolist() == [v << k & int(np.iinfo(unsigned).max) for v, k in both]
    for type_ in ("u", "b"):
        assert apply(f"shr.{type_}{width}", unsigned, x, n).tolist() == [v >> k for v, k in both]
    expected = [wrapped(v, signed) >> k for v, k in both]
    assert apply(f"shr.s{width}", signed, x, n).tolist() == expected


def fields() -> tuple[np.ndarray, np.ndarray]:
    return pairs(np.array([*range(9), 31, 32, 33, 63, 64, 65, 200, 255, 256, 2**32 - 1], np.uint32))


@pytest.mark.parametrize("type_", ["u32", "s32", "u64", "s64"])
def test_fields_are_taken_out_as_the_loop_of_the_isa_does(type_: str) -> None:
    width = int(type_[1:])
    dtype = UNSIGNED[width]
    position, length = fields()
    values = np.array([0, 1, 0x8000_0001, 0x1234_5678, 0xF0F0_F0F0] + [2**width - 1, 2**(width - 1)]
                      + [0x8000_0000_1234_5679 % 2**width], dtype)  # fmt: skip

    def taken(a: int, pos: int, count: int) -> int:
        pos, count, msb = pos & 0xFF, count & 0xFF, width - 1
        sign = 0 if type_[0] == "u" or not count else a >> min(pos + count - 1, msb) & 1
        bits = [a >> (pos + i) & 1 if i < count and pos + i <= msb else sign for i in range(width)]
        return sum(bit << i for i, bit in enumerate(bits))

    for a in values:
        found = apply(f"bfe.{type_}", dtype, np.full(len(position), a), position, length)
        expected = [taken(int(a), int(p), int(n)) for p, n in zip(position, length, strict=True)]
        assert found.tolist() == expected, hex(a)


@pytest.mark.parametrize("width", [32, 64])
def test_fields_are_put_in_as_the_loop_of_the_isa_does(width: int) -> None:
    dtype = UNSIGNED[width]
    position, length = fields()

    def put(a: int, b: int, pos: int, count: int) -> int:
        pos, count, i = pos & 0xFF, count & 0xFF, 0
        while i < count and pos + i < width:
            b = b & ~(1 << (pos + i)) | (a >> i & 1) << (pos + i)
            i += 1
        return b

    for a, b in ((0x1234567, 2**width - 1), (2**width - 1, 0), (0xA5A5A5A5, 0x5A5A5A5A)):
        found = apply(
            f"bfi.b{width}",
            dtype,
            *(np.full(len(position), x, dtype) for x in (a, b)),
            *(position, length),
        )
        expected = [put(a, b, int(p), int(n)) for p, n in zip(position, length, strict=True)]
        assert found.tolist() == expected


def test_ones_and_leading_zeros_are_counted() -> None:
    for width, dtype in ((32, np.uint32), (64, np.uint64)):
        low = np.arange(1 << 16, dtype=dtype)
        x = np.concatenate([low, low << dtype(width - 16), ~low, integers(dtype)])
        assert apply(f"popc.b{width}", np.uint32, x).tolist() == [int(v).bit_count() for v in x]
        expected = [width - int(v).bit_length() for v in x]
        assert apply(f"clz.b{width}", np.uint32, x).tolist() == expected


def test_every_selector_of_a_permutation() -> None:
    a, b = 0x84C3_0201, 0x7F80_FF45
    selectors = np.arange(1 << 16, dtype=np.uint32)
    both = (b << 32 | a).to_bytes(8, "little")

    def digit(s: int) -> int:
        byte = both[s & 7]
        return (0xFF if byte & 0x80 else 0) if s & 8 else byte

    digits = np.array([digit(s) for s in range(16)], np.uint32)
    expected = sum(digits[selectors >> 4 * k & 15] << 8 * k for k in range(4))
    full = [np.full(1 << 16, x, np.uint32) for x in (a, b)]
    assert (apply("prmt.b32", np.uint32, *full, selectors) == expected).all()
    # only four bits of each digit count
    assert apply("prmt.b32", np.uint32, str(a), str(b), "0xABCD3210").tolist() == [a]


def test_a_permutation_is_undefined_where_the_bytes_that_it_takes_are() -> None:
    """Compilers leave an operand undefined of which they take no byte."""
    decides = "setp.eq.s32 %p1, %r3, 0;\n@%p1 ret;"
    given = "mov.u32 %r1, 7;\nmov.b32 %r4, {%h1, %h2};\n"
    packed = "mov.u16 %h1, 1;\nmov.b32 %r4, {%h1, %h2};\n"  # its upper half is undefined
    for begin, operands in (
        (given, "%r1, %r2, 0x0123"),
        (given, "%r2, %r1, 0x4567"),
        (given + "mov.u32 %r5, 0x3210;\n", "%r1, %r2, %r5"),
        (packed, "%r4, %r2, 0x0101"),
        (packed, "%r4, %r2, 0x9898"),
    ):
        run(f"{begin}prmt.b32 %r3, {operands};\n{decides}")
    for begin, operands in (
        (given, "%r1, %r2, 0x0124"),
        (given, "%r1, %r1, %r5"),
        (packed, "%r4, %r2, 0x0102"),
        (packed, "%r4, %r2, 0x000B"),
    ):
        with pytest.raises(Fault, match="predicate is undefined"):
            run(f"{begin}prmt.b32 %r3, {operands};\n{decides}")
    # what is taken of it later may be defined
    run(packed + "prmt.b32 %r3, %r4, %r4, 0x2000;\nprmt.b32 %r3, %r3, 0, 0x4210;\n" + decides)


def test_a_shift_is_undefined_where_bits_that_it_keeps_are() -> None:
    """Compilers pack a register with something undefined that a shift throws away."""
    decides = "setp.eq.s64 %p1, %d2, 0;\n@%p1 ret;"
    lower = "mov.u32 %r1, 7;\nmov.u32 %r5, 32;\nmov.b64 %d1, {%r1, %r2};\n"
    upper = "mov.u32 %r1, 7;\nmov.u32 %r5, 32;\nmov.b64 %d1, {%r2, %r1};\n"
    for given in (
        lower + "shl.b64 %d2, %d1, 32;",
        lower + "shl.b64 %d2, %d1, %r5;",
        upper + "shr.u64 %d2, %d1, 32;",
        upper + "shr.s64 %d2, %d1, 32;",
        upper + "shr.s64 %d2, %d1, 99;",
        lower + "shr.u64 %d2, %d1, 99;",
    ):
        run(f"{given}\n{decides}")
    for given in (
        lower + "shl.b64 %d2, %d1, 31;",
        lower + "shr.s64 %d2, %d1, 99;",
        lower + "shl.b64 %d2, %d1, %r9;",
        upper + "shr.u64 %d2, %d1, 31;",
    ):
        with pytest.raises(Fault, match="predicate is undefined"):
            run(f"{given}\n{decides}")


def test_every_table_of_three_bits() -> None:
    """The table is the function of f0, cc and aa."""
    a, b, c = (np.resize(np.uint32([x]), 1) for x in (0xF0F00FF0, 0xCCCC3355, 0xAAAA9A5A))
    for table in range(256):
        found = int(apply("lop3.b32", np.uint32, a, b, c, str(table))[0])
        for k in range(32):
            row = (int(a[0]) >> k & 1) << 2 | (int(b[0]) >> k & 1) << 1 | int(c[0]) >> k & 1
            assert found >> k & 1 == table >> row & 1, (table, k)
    assert apply("lop3.b32", np.uint32, a, b, c, "0x96").tolist() == (a ^ b ^ c).tolist()


@pytest.mark.parametrize(
    "instruction",
    [
        "and.u32 %r1, %r2, %r3",
        "shl.u32 %r1, %r2, %r3",
        "shf.l.wrap.b32 %r1, %r2, %r3, %r4",
        "bfe.b32 %r1, %r2, %r3, %r4",
        "bfi.u32 %r1, %r2, %r3, %r4, %r5",
        "prmt.b32.f4e %r1, %r2, %r3, %r4",
        "lop3.b32 %r1, %r2, %r3, %r4, %r5",
        "brev.b32 %r1, %r2",
        "popc.u32 %r1, %r2",
        "clz.b16 %r1, %h2",
    ],
)
def test_a_spelling_that_is_not_known_is_an_error_that_names_it(instruction: str) -> None:
    with pytest.raises(NotUnderstood) as raised:
        run(instruction + ";")
    assert instruction in str(raised.value)
