"""What Triton makes of the kernel, for every architecture the CUDA one is built for; needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sass
from audit import audit, inexact_arithmetic

from stackelberg_fused.rules import MIXED_RULES, RULES, Rule

pytestmark = pytest.mark.skipif(bool(sass.unavailable()), reason=sass.unavailable())

HERE = Path(__file__).parent
# every rule for one architecture, one rule per set of buffers for the others; the launch that mixes rules costs seconds
# to compile: once for each of the two assemblers that Triton has
EVERY = (*RULES, MIXED_RULES)
SHORT = (0, Rule.AMSGRAD, Rule.SGD, Rule.SGD | Rule.MOMENTUM)
COMPILED = {80: SHORT, 90: EVERY, 100: SHORT, 120: (*SHORT, MIXED_RULES)}
BLOCKS = 3  # of a tile's threads each, on a multiprocessor: what the sizes in triton_kernels/step.py are chosen for


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the compiled kernels: two processes share the architectures."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    jobs = [
        f"{arch}:{','.join(str(int(rule)) for rule in rules)}" for arch, rules in COMPILED.items()
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "compile_triton.py"), str(folder), *work],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for work in (jobs[:2], jobs[2:])
    ]
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return folder


@pytest.mark.parametrize(
    "arch, rule", [(arch, int(rule)) for arch, rules in COMPILED.items() for rule in rules]
)
def test_full_tiles_move_each_element_once_in_128_bit_accesses(
    compiled: Path, arch: int, rule: int
) -> None:
    facts = json.loads((compiled / f"{arch}.json").read_text())
    (kernel,) = sass.disassemble(compiled / f"{arch}_{rule}.cubin")
    rules = RULES if rule == MIXED_RULES else (rule,)
    audit(kernel, rules, facts["threads"], BLOCKS, facts["passes"])


@pytest.mark.parametrize("arch", COMPILED)
def test_ptx_rounds_every_operation_to_nearest(compiled: Path, arch: int) -> None:
    for rule in COMPILED[arch]:
        ptx = (compiled / f"{arch}_{int(rule)}.ptx").read_text()
        assert inexact_arithmetic(ptx) == set(), f"rule {rule}"
    adam = (compiled / f"{arch}_0.ptx").read_text()
    assert all(opcode in adam for opcode in ("fma.rn.f32", "div.rn.f32", "sqrt.rn.f32"))


@pytest.mark.parametrize("arch", COMPILED)
def test_one_kernel_per_rule_whatever_the_first_tile(compiled: Path, arch: int) -> None:
    facts = json.loads((compiled / f"{arch}.json").read_text())
    assert facts["kernels_per_rule"] == 1
    assert facts["fp_fusion"] is False
