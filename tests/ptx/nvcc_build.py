"""Compiles the CUDA sources as the package does, but for one architecture, to PTX alone, and on the fake runtime.

`python -m ptx.nvcc_build` does so and says what, as `make test` does before the tests.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from build_once import cache, digest, once, run, run_all
from paths import CSRC

HERE = Path(__file__).resolve().parent
ARCH = "compute_90"
# those of setup.py that device code depends on
DEVICE_FLAGS = ("-std=c++17", "-O3", "-fmad=false")
X86 = platform.machine().lower() in ("x86_64", "amd64")
FLAGS = (
    *DEVICE_FLAGS,
    f"-gencode=arch={ARCH},code={ARCH}",
    *("--cudart", "none"),
    f"-I{CSRC}",
    *(("-DSF_X86=1",) if X86 else ()),
)
HOST_FLAGS = ("-Xcompiler", "-O0,-fPIC,-fvisibility=hidden,-ffp-contract=off")
MODULE = "_cuda.so"


def nvcc() -> str:
    """The compiler, or empty; looked for as setup.py does."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "PATH", "/usr/local/cuda"]
    found = (
        shutil.which("nvcc" if root == "PATH" else os.path.join(root, "bin", "nvcc"))
        for root in filter(None, roots)
    )
    return next(filter(None, found), "")


def unavailable() -> str:
    """Why nothing can be built here, or empty."""
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    return "" if nvcc() else "no nvcc on PATH; install the CUDA toolkit or set CUDA_HOME"


def build(say: Callable[[str], None] = lambda line: None) -> Path:
    """The folder with the extension module and a .ptx for each source; compiled unless that was done before.

    Args:
        say: told what has been compiled.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    import pybind11

    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
    compile_ = [nvcc(), *FLAGS, *HOST_FLAGS, *includes]
    kernels = sorted((CSRC / "cuda").glob("*.cu"))
    sources = [*kernels, *sorted((CSRC / "cuda").glob("*.cpp")), HERE / "fake_cuda_runtime.cpp"]
    versions = run([nvcc(), "--version"]) + sys.version + pybind11.__version__
    target = cache("ptx") / f"nvcc-{digest((CSRC, HERE), repr((compile_, sources)), versions)}"

    def make(made: Path) -> None:
        # what nvcc keeps has the same names for every source
        aside = {source: made.parent / "aside" / source.name for source in sources}
        commands = {}
        for source, folder in aside.items():
            folder.mkdir(parents=True)
            keep = ["--keep", "--keep-dir", str(folder)]
            command = [*compile_, *keep, "-c", str(source), "-o", str(folder / "object.o")]
            commands[f"{MODULE} on {ARCH}: {source.name}"] = command
        run_all(commands, say)
        made.mkdir()
        for source in kernels:
            (text,) = aside[source].glob("*.ptx")
            shutil.copy(text, made / f"{source.stem}.ptx")
        objects = [str(folder / "object.o") for folder in aside.values()]
        run([nvcc(), "-shared", "--cudart", "none", *objects, "-o", str(made / MODULE)])

    return once(target, make)


def main() -> None:
    if unavailable():
        print(f"what nvcc emits is not run: {unavailable()}")
        return
    try:
        build(lambda line: print(line, flush=True))
    except RuntimeError as error:  # the tests say so again
        print(error, flush=True)


if __name__ == "__main__":
    main()
