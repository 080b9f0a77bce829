"""The reader of machine code on small listings: what it must not miss."""

from __future__ import annotations

import pytest
from audit import TABLE_LOADS, audit, inexact_arithmetic
from sass import Accesses, Kernel, parse

from stackelberg_fused.native.tables import TILE_ELEMENTS

RESOURCES = {"REG": 32, "STACK": 0, "LOCAL": 0}


def _kernel(*lines: str) -> Kernel:
    body = "\n".join(
        line if line.endswith(":") else f"        /*{i * 16:04x}*/       {line} ;"
        for i, line in enumerate(lines)
    )
    kernel = parse(f".text.step:\n{body}\n")["step"]
    kernel.resources = dict(RESOURCES)
    return kernel


def test_paths_of_a_vector_and_a_scalar_branch() -> None:
    kernel = _kernel(
        "LDG.E.64 R2, desc[UR4][R4.64]",
        "@!P0 BRA `(.L_x_1)",
        "LDG.E.128 R8, desc[UR4][R4.64+0x2000]",
        "STG.E.128 desc[UR4][R4.64], R8",
        "EXIT",
        ".L_x_1:",
        "LDG.E R8, desc[UR4][R4.64]",
        "STG.E desc[UR4][R4.64], R8",
        "@P1 BRA `(.L_x_1)",
        "EXIT",
    )
    assert kernel.paths() == {Accesses(16, 16, 1, 0), Accesses(0, 0, 2, 1)}
    assert kernel.wide_in_loops() == []


def test_what_is_added_about_scheduling_is_left_out() -> None:
    kernel = _kernel(
        "@P0 LDG.E.128 R8, desc[UR4][R4.64]  &req={1,0} &wr=0x2  ?trans1",
        'BRX R4 -0x3d0    ?WAIT13_END_GROUP  (*"BRANCH_TARGETS .L_x_1,.L_x_2"*)',
        ".L_x_1:",
        "BSYNC.RECONVERGENT B0  &rd=0x0  ?trans5",
        ".L_x_2:",
        "EXIT  ?trans5",
    )
    assert [i.operands for i in kernel.instructions] == [
        "R8, desc[UR4][R4.64]",
        'R4 -0x3d0  (*"BRANCH_TARGETS .L_x_1,.L_x_2"*)',
        "B0",
        "",
    ]
    assert kernel.successors(1) == [2, 3]


def test_duplicated_code_counts_once_per_path() -> None:
    kernel = _kernel(
        "LDG.E.128 R8, desc[UR4][R4.64]",
        'BRX R14 -0x50 (*"BRANCH_TARGETS .L_x_1,.L_x_2"*)',
        ".L_x_1:",
        "STG.E.128 desc[UR4][R4.64], R8",
        "EXIT",
        ".L_x_2:",
        "STG.E.128 desc[UR4][R4.64], R8",
        "EXIT",
    )
    assert kernel.paths() == {Accesses(16, 16, 0, 0)}


def test_wide_access_in_a_loop_is_found() -> None:
    kernel = _kernel(".L_x_1:", "LDG.E.128 R8, desc[UR4][R4.64]", "@P0 BRA `(.L_x_1)", "EXIT")
    assert len(kernel.wide_in_loops()) == 1


def test_loops_are_left_out() -> None:
    kernel = _kernel(
        "@P0 LDG.E R2, desc[UR4][R4.64]",
        "@P1 BRA `(.L_x_1)",
        "LDG.E.128 R8, desc[UR4][R4.64]",
        "@P2 STG.E.U8 desc[UR4][R4.64], R2",
        "@P3 BRA `(.L_x_1)",
        "STG.E.128 desc[UR4][R4.64], R8",
        "EXIT",
        ".L_x_1:",
        "LDG.E.128 R8, desc[UR4][R4.64]",
        "STG.E desc[UR4][R4.64], R8",
        "@P1 BRA `(.L_x_1)",
        "EXIT",
    )
    # through the loop with and without what was before it, and past it
    expected = {Accesses(0, 0, 1, 0), Accesses(16, 0, 1, 1), Accesses(16, 16, 1, 1)}
    assert kernel.paths(with_loops=False) == expected


def test_paths_that_agree_in_wide_accesses_are_one_without_loops() -> None:
    kernel = _kernel(
        "@P0 BRA `(.L_x_1)",
        "LDG.E R2, desc[UR4][R4.64]",
        "EXIT",
        ".L_x_1:",
        "LDG.E R2, desc[UR4][R4.64]",
        "LDG.E R2, desc[UR4][R4.64]",
        "EXIT",
    )
    assert len(kernel.paths()) == 2
    assert kernel.paths(with_loops=False) == {Accesses(0, 0, 2, 0)}


def test_unknown_control_flow_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="JMX"):
        _kernel("JMX R4", "EXIT").paths()


MOST_LOADS = TABLE_LOADS + 2 * TILE_ELEMENTS // 1024  # with the bounds of a box, for each element
FULL_TILE = (
    *["LDG.E.128 R8, [R4.64]"] * 4,
    *["STG.E.128 [R4.64], R8"] * 3,
    "EXIT",
)  # Adam, 1024 threads


def test_audit_accepts_the_floor() -> None:
    audit(_kernel(*FULL_TILE), (0,), threads=1024, blocks=2)


@pytest.mark.parametrize(
    "lines, what",
    [
        ((FULL_TILE[0], *FULL_TILE), "step"),  # a buffer read twice
        (FULL_TILE[1:], "step"),
        (("LDG.E R8, [R4.64]",) * (MOST_LOADS + 1) + FULL_TILE, f"narrow_loads={MOST_LOADS + 1}"),
        (("STG.E [R4.64], R8", *FULL_TILE), "narrow stores"),
        (("STL [R1], R8", *FULL_TILE), "spills"),
        (("LD.E R8, [R4.64]", *FULL_TILE), "generic"),
        (("@P0 LDG.E.128 R8, [R4.64]", *FULL_TILE[1:]), "predicated"),
        ((*FULL_TILE, "LDG.E.128 R8, [R4.64]"), "misread"),
    ],
)
def test_audit_refuses(lines: tuple[str, ...], what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        audit(_kernel(*lines), (0,), threads=1024, blocks=2)


def test_audit_refuses_stack_and_too_many_registers() -> None:
    for resources in ({"STACK": 8}, {"LOCAL": 8}, {"REG": 33}):
        kernel = _kernel(*FULL_TILE)
        kernel.resources.update(resources)
        with pytest.raises(AssertionError):
            audit(kernel, (0,), threads=1024, blocks=2)


@pytest.mark.parametrize(
    "line",
    [
        "add.f32 %f1, %f2, %f3;",
        "@%p1 mul.ftz.f32 %f1, %f2, %f3;",
        "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;",
        "div.full.f32 %f1, %f2, %f3;",
        "sqrt.approx.f32 %f1, %f2;",
        "{ mad.f32 %f1, %f2, %f3, %f4; }",
        "sub.rz.f32 %f1, %f2, %f3;",
    ],
)
def test_inexact_arithmetic_is_found(line: str) -> None:
    assert inexact_arithmetic(f"\t{line}\n") != set()


def test_exact_arithmetic_passes() -> None:
    exact = "fma.rn.f32 mul.rn.f32 div.rn.f32 sqrt.rn.f32 neg.f32 setp.gt.f32 selp.f32 ld.global.f32 mov.f32"
    assert inexact_arithmetic("\n".join(f"{opcode} %f1, %f2;" for opcode in exact.split())) == set()


def test_the_cheapest_path_to_each_store_and_of_those_the_dearest() -> None:
    kernel = _kernel(
        "LDG.E.128 R8, desc[UR4][R4.64]",
        "@P0 EXIT",
        "@P1 BRA `(.L_x_2)",
        "@P2 BRA `(.L_x_1)",
        "LOP3.LUT R8, R8, R9, RZ, 0xfc, !PT",
        ".L_x_1:",
        "STG.E.128 desc[UR4][R4.64], R8",
        "EXIT",
        ".L_x_2:",
        "FADD R8, R8, R9",
        "FADD R8, R8, R9",
        "FADD R8, R8, R9",
        "STG.E.128 desc[UR4][R4.64], R8",
        "EXIT",
    )
    assert kernel.fewest_instructions() == {(16, 0): 2, (16, 16): 8}
    adds = kernel.fewest_instructions(lambda one: one.name == "FADD")
    assert adds == {(16, 0): 0, (16, 16): 3}
