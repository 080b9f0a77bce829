"""Instructions that the CUDA kernel executes per parameter of fewer bits.

Run it as: python tests/support/instructions.py [MODULE].
MODULE is a `_cuda` extension module or a cubin of another build; by default it is the one that is installed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import sass
from audit import INSTRUCTIONS_PER_BYTE, instructions_per_parameter
from named_schemes import NAMED

from stackelberg_fused import _cuda

THREADS = 256  # kLowPrecisionThreads of csrc/cuda/block.cuh


def main() -> None:
    module = Path(sys.argv[1] if len(sys.argv) > 1 else _cuda.__file__).resolve()
    with tempfile.TemporaryDirectory() as folder:
        sass.run_tool("cuobjdump", "-xelf", "all", module, cwd=Path(folder))
        counts = {
            architecture(file): instructions_per_parameter(kernel, THREADS)
            for file in sorted(Path(folder).glob("*.cubin"))
            for kernel in sass.disassemble(file)
            if "low_precision_kernel" in kernel.name
        }
    print(
        f"{'':14}{'bytes':>8}{'budget':>8}" + "".join(f"{arch:>10} {'half':>5}" for arch in counts)
    )
    for name, named in NAMED.items():
        budget = INSTRUCTIONS_PER_BYTE * named.stated
        row = "".join(
            f"{of[name].instructions:10.1f} {of[name].half_rate_slots:5.1f}"
            for of in counts.values()
        )
        print(f"{name:14}{named.stated:8.3f}{budget:8.1f}{row}")


def architecture(file: Path) -> str:
    """sm_90 of NAME.1.sm_90.cubin."""
    return file.name.split(".")[-2]


if __name__ == "__main__":
    main()
