"""The machine code of the Triton kernels, for every architecture that CUDA kernels are built for; needs no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import compiled_triton
import pytest
import sass
from audit import (
    ATOMICS,
    assert_kept_in_registers,
    audit,
    audit_formats,
    audit_projection,
    audit_statistics,
    inexact_arithmetic,
    is_signal,
    unordered_atomics,
)
from compile_triton import (
    EXTRAS,
    FORMATS,
    ONCE,
    PROJECTIONS,
    SOME_FORMATS,
    STATISTICS,
)
from compiled_triton import COMPILED
from mixed_rules import EVERY, rules_of
from named_schemes import NAMED

from stackelberg_fused.native.tables import TILE_ELEMENTS

pytestmark = [
    pytest.mark.skipif(bool(sass.unavailable()), reason=sass.unavailable()),
    pytest.mark.slow,
    pytest.mark.xdist_group("Triton's compiler"),  # or each process would compile everything
]

# likewise of the formats of fewer bits
LOW_PRECISION = {
    arch: tuple(FORMATS) if EVERY in rules else SOME_FORMATS for arch, rules in COMPILED.items()
}
BLOCKS = 3  # of a tile's threads each, on a multiprocessor: what the sizes in triton_kernels/tile.py are chosen for


def is_compiled(arch: int, name: str) -> bool:
    """Whether an architecture has these statistics, or this projection."""
    return name not in ONCE or EVERY in COMPILED[arch]


def by_arch_and_name(names: Iterable[str]) -> pytest.MarkDecorator:
    """Statistics, or projections, of each architecture."""
    found = [(arch, name) for arch in COMPILED for name in names if is_compiled(arch, name)]
    return pytest.mark.parametrize("arch, name", found)


@pytest.fixture(scope="module")
def compiled() -> Path:
    """The folder with the compiled kernels."""
    return compiled_triton.compiled()


@pytest.mark.parametrize(
    "arch, rules", [(arch, rules) for arch, every in COMPILED.items() for rules in every]
)
def test_full_tiles_move_each_element_once_in_128_bit_accesses(
    compiled: Path, arch: int, rules: str
) -> None:
    facts = json.loads((compiled / f"{arch}.json").read_text())
    (kernel,) = sass.disassemble(compiled / f"{arch}_{rules}.cubin")
    audit(kernel, rules_of(rules), facts["threads"], BLOCKS, facts["passes"])


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("arch", COMPILED)
def test_what_a_launch_does_beside_the_update_keeps_accesses_wide(
    compiled: Path, arch: int, name: str
) -> None:
    facts = json.loads((compiled / f"{arch}.json").read_text())
    (kernel,) = sass.disassemble(compiled / f"{arch}_{name}.cubin")
    sums_or_clears = bool({"takes_turns", "zero_grads", "joint"} & EXTRAS[name].keys())
    audit(kernel, (0,), facts["threads"], BLOCKS, facts["passes"], sums_or_clears=sums_or_clears)
    assert bool(kernel.count(*ATOMICS)) == bool({"arrived", "joint"} & EXTRAS[name].keys())
    assert unordered_atomics(kernel) == []
    if name == "zeroing":
        written = 4 * TILE_ELEMENTS // facts["threads"]
        moved = {path[:2] for path in kernel.paths()}
        assert moved == {(0, 0), (4 * written, 4 * written)}  # Adam reads 4 and writes 3


# blocks of LOW_PRECISION_WARPS on a multiprocessor; those with codes have 16 elements of a thread in flight, others 8
BLOCKS_OF_CODES, BLOCKS_OF_HALVES = 2, 4


@pytest.mark.parametrize(
    "arch, name", [(arch, n) for arch, names in LOW_PRECISION.items() for n in names]
)
def test_full_tiles_of_fewer_bits_move_each_element_once_in_128_bit_accesses(
    compiled: Path, arch: int, name: str
) -> None:
    facts = json.loads((compiled / f"{arch}.json").read_text())["low_precision"]
    (kernel,) = sass.disassemble(compiled / f"{arch}_{name}.cubin")
    here = [named for named in NAMED.values() if named.word in FORMATS[name]]
    moved = set()
    for named in here:
        elements = facts["codes" if named.has_codes else "halves"] / facts["threads"]
        moved.add(tuple(elements * count for count in named.bytes_moved()))
    has_codes = any(named.has_codes for named in here)
    blocks = BLOCKS_OF_CODES if has_codes else BLOCKS_OF_HALVES
    audit_formats(kernel, moved, facts["threads"], blocks)


def test_whatever_a_launch_of_some_rules_does_stays_in_registers(compiled: Path) -> None:
    facts = json.loads((compiled / "90.json").read_text())
    (kernel,) = sass.disassemble(compiled / "90_rules-everything.cubin")
    assert_kept_in_registers(kernel, facts["threads"], BLOCKS)
    assert unordered_atomics(kernel) == []


def test_whatever_a_launch_of_fewer_bits_does_stays_in_registers(compiled: Path) -> None:
    facts = json.loads((compiled / "90.json").read_text())["low_precision"]
    for name in ("several-everything", "several-rules", "widest"):
        (kernel,) = sass.disassemble(compiled / f"90_{name}.cubin")
        assert_kept_in_registers(kernel, facts["threads"], BLOCKS_OF_CODES)
        assert unordered_atomics(kernel) == []


@by_arch_and_name(STATISTICS)
def test_statistics_read_each_gradient_once_in_128_bit_accesses(
    compiled: Path, arch: int, name: str
) -> None:
    (kernel,) = sass.disassemble(compiled / f"{arch}_{name}.cubin")
    audit_statistics(kernel)
    assert sum(is_signal(instruction) for instruction in kernel.instructions) == 1
    assert unordered_atomics(kernel) == []


@by_arch_and_name(PROJECTIONS)
def test_projections_keep_all_in_registers(compiled: Path, arch: int, name: str) -> None:
    (kernel,) = sass.disassemble(compiled / f"{arch}_{name}.cubin")
    audit_projection(kernel, put_aside=2)


@pytest.mark.parametrize("arch", COMPILED)
def test_ptx_rounds_every_operation_to_nearest(compiled: Path, arch: int) -> None:
    low_precision = [*LOW_PRECISION[arch], *(["several-everything"] if arch == 90 else [])]
    names = [
        *COMPILED[arch],
        *EXTRAS,
        *low_precision,
        *(name for name in (*STATISTICS, *PROJECTIONS) if is_compiled(arch, name)),
    ]
    ptx = {name: (compiled / f"{arch}_{name}.ptx").read_text() for name in names}
    for name, text in ptx.items():
        assert inexact_arithmetic(text) == set(), name
    for name in ("0", *EXTRAS, *low_precision):
        assert all(f"{what}.rn.f32" in ptx[name] for what in ("fma", "div", "sqrt")), name
    # bias corrections and norms
    for name in ("counted", *(name for name in STATISTICS if name in ptx)):
        assert all(f"{what}.rn.f64" in ptx[name] for what in ("mul", "div", "sqrt")), name


@pytest.mark.parametrize("arch", COMPILED)
def test_one_kernel_per_rule_whatever_the_first_tile_and_none_that_contracts(
    compiled: Path, arch: int
) -> None:
    facts = json.loads((compiled / f"{arch}.json").read_text())
    assert facts["kernels_per_rule"] == 1
    assert len(facts["fp_fusion"]) > len(COMPILED[arch])
    assert not any(
        facts["fp_fusion"]
    )  # set on every launch: what it is unset changes in Triton 3.10
