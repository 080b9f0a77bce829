"""The PTX of the CUDA sources for one architecture: `python -m ptx.emitted FOLDER ARCH ...` writes ARCH_SOURCE.ptx."""

from __future__ import annotations

import sys
from pathlib import Path

from build_once import cache, digest, once, run, run_all
from paths import CSRC

from .nvcc_build import DEVICE_FLAGS, X86, nvcc

ARCHS = (80, 90, 100, 120)


def nvcc_modules(arch: int) -> dict[str, str]:
    """The text by the name of its source; compiled once per content."""
    command = [nvcc(), *DEVICE_FLAGS, f"-I{CSRC}", *(["-DSF_X86=1"] if X86 else [])]
    command += [f"-arch=compute_{arch}", "-ptx"]
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    versions = run([nvcc(), "--version"])
    target = cache("ptx") / f"text-{arch}-{digest((CSRC,), repr(command), versions)}"

    def make(folder: Path) -> None:
        folder.mkdir()
        run_all({s.stem: [*command, str(s), "-o", str(folder / f"{s.stem}.ptx")] for s in sources})

    once(target, make)
    return {path.stem: path.read_text() for path in sorted(target.glob("*.ptx"))}


if __name__ == "__main__":
    for number in sys.argv[2:]:
        for name, text in nvcc_modules(int(number)).items():
            Path(sys.argv[1], f"{number}_{name}.ptx").write_text(text)
