"""What nvcc made of the kernels: the extension module that is installed here is taken apart; needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sass
from audit import audit, inexact_arithmetic

from stackelberg_fused.rules import MIXED_RULES, RULES

_cuda = pytest.importorskip(
    "stackelberg_fused._cuda", reason="the CUDA extension is not built here (no nvcc)"
)
pytestmark = pytest.mark.skipif(bool(sass.unavailable()), reason=sass.unavailable())

CSRC = Path(__file__).resolve().parents[1] / "csrc"
THREADS = int(re.search(r"kThreads = (\d+)", (CSRC / "cuda/step.cu").read_text())[1])
BLOCKS = 2  # kBlocksPerMultiprocessor


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


def _rule(kernel: str) -> int:
    sign, digits = re.search(r"step_kernelILi(n?)(\d+)E", kernel).groups()
    return -int(digits) if sign else int(digits)


def test_full_tiles_move_each_element_once_in_128_bit_accesses(extracted: Path) -> None:
    for cubin in sorted(extracted.glob("*.cubin")):
        kernels = {_rule(kernel.name): kernel for kernel in sass.disassemble(cubin)}
        assert set(kernels) == {*RULES, MIXED_RULES}, cubin.name
        for rule, kernel in kernels.items():
            audit(kernel, RULES if rule == MIXED_RULES else (rule,), THREADS, BLOCKS)


def test_ptx_rounds_every_operation_to_nearest(extracted: Path) -> None:
    files = list(extracted.glob("*.ptx"))
    if not files:
        pytest.skip("the module was built without PTX (STACKELBERG_CUDA_ARCHS)")
    for file in files:
        ptx = file.read_text()
        assert inexact_arithmetic(ptx) == set(), file.name
        assert "fma.rn.f32" in ptx
        assert "div.rn.f32" in ptx
        assert "sqrt.rn.f32" in ptx
