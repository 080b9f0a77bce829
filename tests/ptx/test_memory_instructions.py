"""Loads, stores, atomic operations and parameters (sections 9.7.9 and 9.7.13), and what they must not do."""

from __future__ import annotations

import numpy as np
import pytest

from .definitions import integers
from .kernel import Kernel
from .lanes import Fault
from .launch import Launch
from .memory import Memory
from .one_instruction import kernel, kernel_text, run
from .parser import NotUnderstood, read

pytestmark = pytest.mark.slow  # together; of this folder the quick sample takes test_parser.py

DECIDES = "setp.eq.s32 %p1, {0}, 0;\n@%p1 bra NEXT;\nNEXT:\n"


def aligned(nbytes: int, offset: int = 0) -> np.ndarray:
    """Bytes that begin `offset` behind a multiple of 256."""
    whole = np.zeros(nbytes + 512, np.uint8)
    start = -whole.ctypes.data % 256 + offset
    return whole[start : start + nbytes]


@pytest.mark.parametrize("type_", ["u8", "s8", "b8", "u16", "s16", "u32", "s32"])
def test_a_narrower_load_is_extended_by_zeros_or_the_sign(type_: str) -> None:
    kind, size = type_[0].replace("b", "u"), int(type_[1:]) // 8
    source = np.dtype(f"{kind.replace('s', 'i')}{size}").type
    x = np.resize(integers(source), 32)
    for letter, bits in (("%h", 16), ("%r", 32), ("%d", 64)):
        if bits < 8 * size:
            continue
        out = np.zeros(32, f"{'i' if kind == 's' else 'u'}{bits // 8}")
        run(
            f"mul.wide.u32 %d1, %i, {size};\nadd.s64 %d1, %a0, %d1;\n"
            f"ld.global.{type_} {letter}9, [%d1];\n"
            f"mul.wide.u32 %d2, %i, {bits // 8};\nadd.s64 %d2, %a1, %d2;\n"
            f"st.global.b{bits} [%d2], {letter}9;",
            *(x, out),
        )
        assert out.tolist() == x.tolist(), bits


def test_a_narrower_store_keeps_the_lower_bits() -> None:
    out = np.full(16, 0xEE, np.uint8)
    run(
        "mov.b64 %d1, 0x8877665544332211;\nst.global.u8 [%a0], %d1;\nst.global.u16 [%a0+2], %d1;\n"
        "st.global.u32 [%a0+4], %d1;\nadd.s64 %d2, %a0, 12;\nst.global.b16 [%d2+-4], %d1;",
        out,
    )
    assert bytes(out).hex() == "11ee" + "1122" + "11223344" + "1122" + "ee" * 6


def test_vectors_hold_their_elements_in_order() -> None:
    x, out = aligned(64), aligned(64)
    x[:] = np.arange(64)
    run(
        "ld.global.v4.u8 {%r1, %h2, %h3, %h4}, [%a0];\n"
        "st.global.v4.b8 [%a1], {%h4, %h3, %h2, %r1};\n"
        "ld.global.v2.b64 {%d1, %d2}, [%a0+16];\nst.global.v2.b64 [%a1+16], {%d2, %d1};\n"
        "ld.global.v8.b32 {%r1, %r2, %r3, %r4, %r5, %r6, %r7, %r8}, [%a0+32];\n"
        "st.global.v4.b32 [%a1+32], {%r8, %r7, %r6, %r5};\nst.global.v2.s16 [%a1+4], {%r1, 7};",
        *(x, out),
    )
    assert out[:8].tolist() == [3, 2, 1, 0, 32, 33, 7, 0]
    assert out[16:32].tolist() == [*range(24, 32), *range(16, 24)]
    assert out[32:48].tolist() == [*range(60, 64), *range(56, 60), *range(52, 56), *range(48, 52)]


@pytest.mark.parametrize(
    "access, size",
    [
        ("ld.global.b16 %h1", 2),
        ("ld.global.v2.b32 {%r1, %r2}", 8),
        ("ld.global.v4.b32 {%r1, %r2, %r3, %r4}", 16),
    ],
)
def test_an_address_has_to_be_a_multiple_of_the_whole_vector(access: str, size: int) -> None:
    x = aligned(256)
    run(f"{access}, [%a0+{size}];", x)
    for offset in {1, size // 2, size - 1}:
        with pytest.raises(Fault, match=f"{size} bytes at .*: not aligned"):
            run(f"{access}, [%a0+{offset}];", x)
    store = f"st{access.removeprefix('ld').split(' ')[0]} [%a0+{size // 2}], {access.partition(' ')[2]};"
    with pytest.raises(Fault, match="not aligned"):
        run(f"mov.b16 %h1, 0;\n{store}", x)
    shared = access.replace("global", "shared")
    with pytest.raises(Fault, match="not aligned"):
        run(f"{shared}, [{size // 2}];", outside=".shared .align 16 .b8 block[64];")


def test_one_byte_beyond_a_buffer_is_a_fault_even_if_memory_goes_on_there() -> None:
    whole = aligned(256)
    first, second = whole[:128], whole[128:]  # neighbours, as slices of one storage are
    at = "mul.wide.u32 %d1, %i, 4;\nadd.s64 %d1, %a0, %d1;\n"
    run(at + "st.global.u32 [%d1], %i;", first)
    for instruction in (
        "st.global.u32 [%d1+4], %i;",
        "ld.global.u32 %r1, [%d1+-4];",
        "ld.global.u32 %r1, [%a0+128];",
    ):
        with pytest.raises(Fault, match="in no buffer"):
            run(at + instruction, first)
    # with both it is found by region
    run(at + "st.global.u32 [%d1+4], %i;", *(first, second))
    memory = Memory()
    memory.add_array("constant", first, is_writable=False)
    decoded = kernel("st.global.u32 [%a0], %i;", 1)
    launch = Launch(decoded, 1, np.uint64(first.ctypes.data).tobytes(), memory)
    with pytest.raises(Fault, match="may only read"):
        launch.run()


def test_the_guard_decides_who_accesses_memory() -> None:
    x = np.zeros(16, np.uint32)
    at = "mul.wide.u32 %d1, %i, 4;\nadd.s64 %d1, %a0, %d1;\nsetp.lt.u32 %p1, %i, {0};\n"
    run(at.format(16) + "@%p1 st.global.u32 [%d1], 7;", x)
    assert x.tolist() == [7] * 16
    with pytest.raises(Fault, match="in no buffer"):
        run(at.format(17) + "@%p1 st.global.u32 [%d1], 7;", x)
    run("setp.lt.u32 %p1, %i, 32;\n@!%p1 ld.global.u32 %r1, [0];", x)


def test_an_address_that_nothing_has_computed_is_a_fault() -> None:
    for instruction in (
        "ld.shared.b32 %r1, [%r9]",
        "st.shared.b32 [%r9], 0",
        "ld.global.b32 %r1, [%d9]",
    ):
        with pytest.raises(Fault, match="the address is undefined"):
            run(f"{instruction};", outside=".shared .b32 word;")
    body = "setp.lt.u32 %p1, %i, 31;\n@%p1 mov.u32 %r9, 0;\nst.shared.b32 [%r9], 0;"
    with pytest.raises(Fault, match="the address is undefined"):
        run(body, outside=".shared .b32 word;")


def test_what_nothing_has_written_may_be_copied_and_must_not_decide() -> None:
    x, y = aligned(64), aligned(64)
    copy = "ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%a0];\nst.global.v4.b32 [%a1], {%r1, %r2, %r3, %r4};\n"
    clear = "".join(f"st.global.b32 [%a1+{at}], 0;\n" for at in range(0, 16, 4))
    run(copy + clear, x, y, written=[False, False])
    with pytest.raises(Fault, match="stores what is undefined"):  # it is left there
        run(copy, x, y, written=[False, False])
    for element in range(4):
        # one element is written; the others stay undefined, also behind the copy
        body = f"st.global.b32 [%a0+{4 * element}], 5;\n{copy}"
        body += f"ld.global.b32 %r7, [%a1+{4 * element}];\n" + DECIDES.format("%r7")
        run(body + clear, x, y, written=[False, False])
        other = f"ld.global.b32 %r8, [%a1+{4 * (element ^ 1)}];\n" + DECIDES.format("%r8").replace(
            "NEXT", "LAST"
        )
        with pytest.raises(Fault, match="predicate is undefined"):
            run(body + other, x, y, written=[False, False])
        with pytest.raises(Fault, match="predicate is undefined"):
            run(body + other, x, y, written=[False, True])  # overwritten by what is undefined
    with pytest.raises(Fault, match="predicate is undefined"):  # one byte of four
        run(
            "st.global.b8 [%a0+1], 5;\nld.global.b32 %r8, [%a0];\n" + DECIDES.format("%r8"),
            x,
            written=[False],
        )
    with pytest.raises(Fault, match=r"adds to bytes of .* that nothing has written"):
        run("atom.global.add.u32 %r1, [%a0], 1;", x, written=[False])


def test_shared_memory_is_a_blocks_own_bounded_and_not_written_at_first() -> None:
    out = np.zeros(64, np.uint32)
    body = (
        "shl.b32 %r1, %t, 2;\nmov.u32 %r2, block;\nadd.s32 %r1, %r1, %r2;\nst.shared.u32 [%r1], %i;\n"
        "bar.sync 0;\nxor.b32 %r3, %r1, 4;\nld.shared.u32 %r4, [%r3];\nmul.wide.u32 %d1, %i, 4;\n"
        "add.s64 %d1, %a0, %d1;\nst.global.u32 [%d1], %r4;"
    )
    run(body, out, grid=2, outside=".shared .align 16 .b8 block[128];")
    assert out.tolist() == [k ^ 1 for k in range(64)]
    with pytest.raises(Fault, match="4 bytes at 124 of 124 bytes of shared memory"):
        run(body, out, grid=2, outside=".shared .align 4 .b8 block[124];")
    with pytest.raises(Fault, match="bytes of shared memory"):
        run(
            "mov.u32 %r1, -4;\nld.shared.u32 %r2, [%r1];",
            outside=".shared .align 4 .b8 block[124];",
        )
    with pytest.raises(Fault, match="predicate is undefined"):
        run(
            "ld.shared.u32 %r1, [block];\n" + DECIDES.format("%r1"),
            outside=".shared .align 4 .b8 block[8];",
        )


@pytest.mark.parametrize("order", ["", "relaxed.gpu.", "acq_rel.gpu.", "relaxed.cta."])
def test_atomic_additions_give_every_thread_another_value(order: str) -> None:
    total, seen = np.array([5], np.uint32), np.zeros(128, np.uint32)
    body = (
        f"atom.{order}global.add.u32 %r1, [%a0], 3;\nmul.wide.u32 %d1, %i, 4;\n"
        "add.s64 %d1, %a1, %d1;\nst.global.u32 [%d1], %r1;"
    )
    run(body, total, seen, threads=64, grid=2)
    assert total[0] == 5 + 3 * 128
    assert sorted(seen.tolist()) == [5 + 3 * k for k in range(128)]


def test_atomic_additions_to_several_buffers_and_without_a_result() -> None:
    low, high = np.zeros(4, np.uint64), np.zeros(4, np.uint64)
    body = (
        "setp.lt.u32 %p1, %i, 10;\nselp.b64 %d1, %a0, %a1, %p1;\nand.b32 %r1, %i, 3;\n"
        "mul.wide.u32 %d2, %r1, 8;\nadd.s64 %d1, %d1, %d2;\n"
    )
    run(body + "red.global.gpu.relaxed.add.u64 [%d1], -1;", low, high)
    assert (-low.view(np.int64)).tolist() == [3, 3, 2, 2]
    assert (-high.view(np.int64)).tolist() == [5, 5, 6, 6]
    run(body + "atom.global.add.u64 _, [%d1], 1;", low, high)
    assert low.tolist() == high.tolist() == [0] * 4


def test_parameters_by_value_by_their_offsets_and_through_a_register() -> None:
    text = read(
        ".visible .entry k(.param .u8 flag, .param .align 8 .b8 many[24], .param .f32 rate,\n"
        ".param .u64 .ptr .global .align 16 out) .maxntid 32 {\n.reg .b32 %r<9>;\n.reg .b64 %d<9>;\n"
        "ld.param.u8 %r1, [flag];\nld.param.v2.u32 {%r2, %r3}, [many+8];\nld.param.u64 %d1, [out];\n"
        "mov.b64 %d2, many;\nld.param.s16 %r4, [%d2+16];\nld.param.f32 %r5, [rate];\n"
        "st.global.u32 [%d1], %r1;\nst.global.u32 [%d1+4], %r2;\nst.global.u32 [%d1+8], %r3;\n"
        "st.global.u32 [%d1+12], %r4;\nst.global.u32 [%d1+16], %r5;\nret; }"
    )["k"]
    assert text.parameters == {"flag": (0, 1), "many": (8, 24), "rate": (32, 4), "out": (40, 8)}
    out = np.zeros(5, np.uint32)
    memory = Memory()
    memory.add_array("out", out)
    block = np.zeros(48, np.uint8)
    block[0] = 200
    block[16:26] = [1, 0, 0, 0, 2, 0, 0, 0, 0xFE, 0xFF]
    block[32:36] = np.frombuffer(np.float32(1).tobytes(), np.uint8)
    block[40:48] = np.frombuffer(np.uint64(out.ctypes.data).tobytes(), np.uint8)
    Launch(Kernel(text), 1, block.tobytes(), memory).run()
    assert out.view(np.int32).tolist() == [200, 1, 2, -2, 0x3F800000]
    with pytest.raises(ValueError, match="47 bytes of parameters, not 48"):
        Launch(Kernel(text), 1, block.tobytes()[:47], memory)


def test_a_parameter_is_read_within_its_block() -> None:
    with pytest.raises(Fault, match="parameter bytes 8 to 16"):
        run("ld.param.u64 %d1, [p0+8];", np.zeros(1, np.uint64))
    with pytest.raises(Fault, match="parameter bytes 4 to 12"):
        run("ld.param.u64 %d1, [p0+4];", np.zeros(1, np.uint64))


@pytest.mark.parametrize(
    "instruction",
    [
        "ld.u32 %r1, [%d1]",
        "ld.local.u32 %r1, [%d1]",
        "ld.global.nc.u32 %r1, [%d1]",
        "ld.const.u32 %r1, [%d1]",
        "ld.global.L2::cache_hint.u32 %r1, [%d1], %d2",
        "ld.global.v4.b32 {%r1, %r2, %r3}, [%d1]",
        "ld.global.v3.b32 {%r1, %r2, %r3}, [%d1]",
        "ld.global.u64 %r1, [%d1]",
        "ld.global.u32 %r1, [%r1]",
        "ld.shared.u32 %r1, [%d1]",
        "st.param.u32 [p], %r1",
        "st.global.u32 [%d1], %h1",
        "atom.global.exch.b32 %r1, [%d1], %r2",
        "atom.global.add.f32 %r1, [%d1], %r2",
        "atom.shared.add.u32 %r1, [%r1], %r2",
        "atom.add.u32 %r1, [%d1], %r2",
        "red.global.acq_rel.gpu.add.u32 [%d1], %r2",
        "cp.async.ca.shared.global [%r1], [%d1], 4",
        "prefetch.global.L2 [%d1]",
    ],
)
def test_a_spelling_that_is_not_known_is_an_error_that_names_it(instruction: str) -> None:
    with pytest.raises(NotUnderstood) as raised:
        Kernel(kernel_text(instruction + ";"))
    assert instruction in str(raised.value)
