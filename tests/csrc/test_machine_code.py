"""The machine code of the kernels, disassembled from the installed extension module; needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sass
from audit import (
    ATOMICS,
    INSTRUCTIONS_PER_BYTE,
    audit,
    audit_low_precision,
    audit_projection,
    audit_statistics,
    inexact_arithmetic,
    instructions_per_parameter,
    unordered_atomics,
)
from named_schemes import NAMED
from paths import CSRC

from stackelberg_fused.groups.rules import MIXED_RULES, RULES

_cuda = pytest.importorskip(
    "stackelberg_fused._cuda", reason="the CUDA extension is not built here (no nvcc)"
)
pytestmark = [
    pytest.mark.skipif(bool(sass.unavailable()), reason=sass.unavailable()),
    pytest.mark.slow,
    pytest.mark.xdist_group("cuobjdump"),  # its output is shared
]

# what has to be among the instructions of each kernel
WANTED = {
    "step": "fma.rn.f32 div.rn.f32 sqrt.rn.f32",
    "low_precision": "fma.rn.f32 div.rn.f32 sqrt.rn.f32",
    "statistics": "add.rn.f64 mul.rn.f64 div.rn.f64 sqrt.rn.f64",
    "project": "add.rn.f64 mul.rn.f64 div.rn.f64 cvt.rz.f32.f64",
}
LAUNCHES = "".join((CSRC / "cuda" / name).read_text() for name in ("float32_tile.cuh", "block.cuh"))


def _constant(name: str) -> int:
    return int(re.search(rf"{name} = (\d+);", LAUNCHES)[1])


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module's cubins and PTX."""
    module = Path(_cuda.__file__)
    sources = [p for p in CSRC.rglob("*") if p.is_file() and p.parent.name != "cpu"]
    if max(p.stat().st_mtime for p in sources) > module.stat().st_mtime:
        pytest.fail(f"{module.name} is older than its sources; install again")
    folder = tmp_path_factory.mktemp("cuda")
    for kind in ("-xelf", "-xptx"):
        sass.run_tool("cuobjdump", kind, "all", module, cwd=folder)
    assert list(folder.glob("*.cubin"))
    return folder


def _rule(kernel: str) -> tuple[int, bool]:
    """The rule of a kernel, and True for the one with options."""
    sign, digits, has_options = re.search(r"step_kernelILi(n?)(\d+)ELb([01])E", kernel).groups()
    return (-int(digits) if sign else int(digits)), has_options == "1"


@pytest.fixture(scope="module")
def cubins(extracted: Path) -> dict[str, list[list[sass.Kernel]]]:
    """Kernels by the source file that they are from, one list per architecture."""
    found: dict[str, list[list[sass.Kernel]]] = {name: [] for name in WANTED}
    for cubin in sorted(extracted.glob("*.cubin")):
        # the kernel that concludes sums of several launches is a warp, once a step
        kernels = [k for k in sass.disassemble(cubin) if "conclude_kernel" not in k.name]
        names = {
            re.search(r"(step|low_precision|statistics|project)_kernel", k.name)[1] for k in kernels
        }
        (source,) = names
        found[source].append(kernels)
    assert len({len(kernels) for kernels in found.values()}) == 1
    assert found["step"]
    return found


def test_full_tiles_move_each_element_once_in_128_bit_accesses(
    cubins: dict[str, list[list[sass.Kernel]]],
) -> None:
    for found in cubins["step"]:
        kernels = {_rule(kernel.name): kernel for kernel in found}
        plain = {(rule, False) for rule in (*RULES, MIXED_RULES)}
        assert set(kernels) == {*plain, (MIXED_RULES, True)}
        for (rule, has_options), kernel in kernels.items():
            rules = RULES if rule == MIXED_RULES else (rule,)
            prefix = "kOptions" if has_options else "k"
            threads, blocks = (
                _constant(f"{prefix}{name}") for name in ("Threads", "BlocksPerMultiprocessor")
            )
            audit(kernel, rules, threads, blocks, sums_or_clears=has_options)


def test_full_tiles_of_schemes_move_each_element_once_in_128_bit_accesses(
    cubins: dict[str, list[list[sass.Kernel]]],
) -> None:
    for (kernel,) in cubins["low_precision"]:
        threads, blocks = (
            _constant(f"kLowPrecision{name}") for name in ("Threads", "BlocksPerMultiprocessor")
        )
        audit_low_precision(kernel, threads, blocks)


def test_schemes_take_no_more_instructions_than_fit_into_the_time_of_their_bytes(
    cubins: dict[str, list[list[sass.Kernel]]],
) -> None:
    for (kernel,) in cubins["low_precision"]:
        threads = _constant("kLowPrecisionThreads")
        for name, issued in instructions_per_parameter(kernel, threads).items():
            assert max(issued) <= INSTRUCTIONS_PER_BYTE * NAMED[name].stated, (kernel.name, name)


def test_statistics_read_each_gradient_once_in_128_bit_accesses(
    cubins: dict[str, list[list[sass.Kernel]]],
) -> None:
    for (kernel,) in cubins["statistics"]:
        audit_statistics(kernel)


def test_projections_keep_all_in_registers(cubins: dict[str, list[list[sass.Kernel]]]) -> None:
    for (kernel,) in cubins["project"]:
        audit_projection(kernel)


def test_a_block_says_that_it_is_done_after_what_it_did(
    cubins: dict[str, list[list[sass.Kernel]]],
) -> None:
    for kernels in (*cubins["step"], *cubins["low_precision"], *cubins["statistics"]):
        for kernel in kernels:
            assert kernel.count(*ATOMICS), kernel.name
            assert unordered_atomics(kernel) == [], kernel.name


def test_ptx_rounds_every_operation_to_nearest(extracted: Path) -> None:
    files = list(extracted.glob("*.ptx"))
    if not files:
        pytest.skip("the module was built without PTX (STACKELBERG_CUDA_ARCHS)")
    for file in files:
        ptx = file.read_text()
        (name,) = set(re.findall(r"(step|low_precision|statistics|project)_kernel", ptx))
        # seeds of quotients and roots that become exact (csrc/cuda/in_range_math.cuh)
        seeds = {"rcp.approx.ftz.f32", "rsqrt.approx.ftz.f32"} if name == "low_precision" else set()
        assert inexact_arithmetic(ptx) == seeds, file.name
        wanted = WANTED[name]
        assert all(what in ptx for what in wanted.split()), name
