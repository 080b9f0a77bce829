"""The text of modules: what is declared, where labels stand, and which line an instruction is on (sections 4 to 7)."""

from __future__ import annotations

import numpy as np
import pytest

from .one_instruction import kernel, run
from .parser import NotUnderstood, read, split

TWO = """// a comment with ; and { and ret;
.version 9.0
.target sm_90a, debug
.address_size 64
.extern .shared .align 16 .b8 dynamic[];
.shared .align 4 .b8 row[6];
.shared .align 8 .f64 total;
.shared .b32 grid[2][3];
.visible .entry first(
    .param .align 8 .b8 args[176],
    .param .u32 count
)
.maxntid 128, 2, 1
.minnctapersm 3
{
    .reg .pred %p<3>; /* a comment
    of two lines; */ .reg .b32 %r<5>;
    .shared .align 16 .b8 own[20];
    .pragma "nounroll";
    .loc 1 20 3
$L__BB0_1: START:
    @!%p1 bra $L__BB0_2;
    mov.u32 %r1, row; add.s32
        %r1, %r1, 4;
    .loc 2 30 7, function_name $L__info, inlined_at 1 20 3
    $L__tmp1:
    $L__TABLE: .branchtargets
        START,
        $L__BB0_2;
    ld.shared.v4.b32 {%r1, %r2,
        %r3, %r4}, [dynamic+16];
$L__BB0_2:
    mov.f64 %r1, total;
    ret;
$L__END:
}
.entry second() .reqntid 32 { ret; }
.entry third { mov.u32 %r1, grid; ret; }
.section .debug_str { .b8 1 }
"""


def test_parameters_shared_variables_labels_and_lists() -> None:
    first, second, third = read(TWO).values()
    assert (first.name, first.threads, second.threads, third.threads) == ("first", 256, 32, None)
    assert first.parameters == {"args": (0, 176), "count": (176, 4)}
    assert (first.parameter_bytes, third.parameter_bytes) == (180, 0)
    # those that the kernel names, each aligned; what the launch brings comes last
    assert first.shared == {"row": 0, "total": 8, "own": 16, "dynamic": 48}
    assert (first.shared_bytes, second.shared_bytes, third.shared_bytes) == (48, 0, 24)
    assert first.labels == {"$L__BB0_1": 0, "START": 0, "$L__tmp1": 3, "$L__BB0_2": 4, "$L__END": 6}
    assert first.targets == {"$L__TABLE": ("START", "$L__BB0_2")}
    assert first.register_types == {"%p": "pred", "%r": "b32"}


def test_instructions_with_guards_vectors_and_lines() -> None:
    bra, mov, add, load, *_ = read(TWO)["first"].instructions
    assert (bra.guard, bra.negated, bra.opcode, bra.operands) == (
        "%p1",
        True,
        "bra",
        ("$L__BB0_2",),
    )
    assert (mov.base, mov.modifiers, mov.operands) == ("mov", ("u32",), ("%r1", "row"))
    assert add.operands == ("%r1", "%r1", "4")
    assert load.operands == ("{%r1, %r2,\n        %r3, %r4}", "[dynamic+16]")
    lines = TWO.splitlines()
    for instruction in (bra, mov, add, load):
        assert instruction.opcode in lines[instruction.line - 1]
    assert str(bra) == f"@!%p1 bra $L__BB0_2 (line {bra.line})"


def test_operands_are_split_outside_of_brackets() -> None:
    assert split("{%a, %b}, [x + 4], (c, d) , ") == ["{%a, %b}", "[x + 4]", "(c, d)"]
    assert split("") == []


def test_a_scope_has_registers_of_its_own() -> None:
    """As inline PTX has them, also without a percent sign, and with other types than those outside."""
    out = np.zeros(4, np.uint32)
    run(
        "mov.u32 %r1, 1;\nmov.u32 %r20, 20;\n"
        "{ .reg .b64 %r<30>; .reg .b32 tmp; mov.b64 %r1, 7; mov.b64 {tmp, %h1}, %r1; }\n".replace(
            "%h1", "%t"
        )
        + "{\n.reg .b32 tmp;\n{ .reg .b32 %r1; mov.b32 %r1, 0f3F800000; mov.b32 tmp, %r1; }\n"
        "st.global.b32 [%a0], tmp;\n}\n"
        "INSIDE: { .reg .pred p; setp.eq.s32 p, %r1, 1; @p st.global.b32 [%a0+4], 5; @!p bra INSIDE;\n}\n"
        "st.global.v2.b32 [%a0+8], {%r1, %r20};",
        out,
    )
    assert out.tolist() == [0x3F800000, 5, 1, 20]


def test_literals_of_every_base() -> None:
    out = np.zeros(8, np.uint32)
    literals = ("0x1F", "-0X1", "017", "0b101", "42U", "0", "0f3f800000", "-2147483648")
    run(
        "".join(f"st.global.b32 [%a0+{4 * k}], {literal};\n" for k, literal in enumerate(literals)),
        out,
    )
    assert out.tolist() == [31, 0xFFFFFFFF, 15, 5, 42, 0, 0x3F800000, 0x80000000]
    for literal in ("0f3f80", "1.0", "09", "0f3f800000000000", "'a'", "%r1x", "-0f3f800000"):
        with pytest.raises(NotUnderstood, match="add"):
            kernel(f"add.f32 %r1, %r2, {literal};")


DECLARATIONS = {
    ".func f() { ret; }": r"\.func",
    ".const .align 4 .b8 table[4];": r"\.const",
    ".visible .const .f32 x;": r"\.const",
    ".shared .align 16 .v4 .f32 x;": "shared memory",
    ".shared .b32 a, b;": "shared memory",
    ".shared .b128 a;": "b128 in shared memory",
    ".entry k(.param .texref t) { ret; }": "texref",
    ".entry k(.param .b32 a .b32 b) { ret; }": r"parameter \.param",
    ".section .debug_str { } .entry hidden { ret; }": "entry",
    ".entry k { ret; ": "without an end",
}
STATEMENTS = {
    ".local .align 8 .b8 depot[8];": r"\.local",
    ".reg .b32 %x<3>, %y;": r"\.reg \.b32 %x<3>, %y",
    ".reg .b32 %r<3>;": "a second register %r",
    "A:\nA:\n": "a second label A",
    "call.uni (f), g;;\n1abc": "1abc",
    "mov.u32 %r1, %clock;": "%clock",
    "mov.u32 %q1, 1;": "%q1",
    "UNKNOWN.b32 %r1, 1;": "UNKNOWN",
}


def test_a_declaration_that_is_not_known_is_an_error_that_names_it() -> None:
    for declared, named in DECLARATIONS.items():
        with pytest.raises(NotUnderstood, match=named):
            read(declared)


def test_a_statement_that_is_not_known_is_an_error_that_names_it() -> None:
    for body, named in STATEMENTS.items():
        with pytest.raises(NotUnderstood, match=named):
            kernel(body)
