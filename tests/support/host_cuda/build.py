"""Compiles CUDA sources with g++ behind the shim, once per content of the sources.

`python -m host_cuda.build` compiles all that tests need and says what, as `make test` does before them: the first test
that needs one of them would say nothing for a minute.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from build_once import cache, digest, once, run, run_all
from paths import CSRC

HERE = Path(__file__).resolve().parent
SHIM = HERE / "shim.h"
# the CPU kernel's, see setup.py: the bits of the result depend on them
FLOAT_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
# -U: the fortified longjmp refuses to jump to another stack
FLAGS = ("-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-fPIC", *FLOAT_FLAGS)


class Program(NamedTuple):
    """One thing to build, and its sources: .cu files get the shim in front, .cpp files are compiled as they are."""

    name: str
    sources: tuple[Path, ...]
    options: tuple[str, ...] = ("-O2", "-shared")


CUDA, CPU = CSRC / "cuda", CSRC / "cpu"
STEP = Program(
    "step.so",
    (
        *(CUDA / name for name in ("step.cu", "low_precision.cu", "statistics.cu", "project.cu")),
        *(HERE / name for name in ("entry.cpp", "fibers.cpp")),
    ),
)
SELFTEST = Program("selftest.so", (HERE / "selftest.cu", HERE / "fibers.cpp"))
_SANITIZED = ("selftest.cu", "fibers.cpp", "sanitized.cpp", "sanitized_low_precision.cpp")
SANITIZED = Program(
    "sanitized",
    (
        *(CUDA / name for name in ("step.cu", "low_precision.cu", "statistics.cu")),
        CPU / "step.cpp",
        *(HERE / name for name in _SANITIZED),
    ),
    (
        *("-O1", "-g1", "-DSF_ISA=baseline"),
        *("-fsanitize=address,undefined,alignment", "-fno-sanitize-recover=all"),
    ),
)
# the threads of the CPU backend, see threaded.cpp
_TSAN = ("-O1", "-g1", "-fsanitize=thread", "-pthread")
THREADED = Program(
    "threaded",
    (
        *(CPU / f"{name}.cpp" for name in ("step", "parallel", "statistics", "project")),
        HERE / "threaded.cpp",
    ),
    (*_TSAN, "-DSF_ISA=baseline", "-ldl"),
)
AS_OPENMP = Program(
    "libtorch_cpu.so",
    (HERE / "threads_as_openmp.cpp",),
    (*_TSAN, "-shared", "-Wl,-soname,libtorch_cpu.so"),
)


def compiler() -> str:
    """The C++ compiler, or empty."""
    wanted = os.environ.get("CXX", "").split()
    names = wanted[:1] or ["g++", "c++", "clang++"]
    return next(filter(None, map(shutil.which, names)), "")


def unavailable() -> str:
    """Why nothing can be built here, or empty."""
    if platform.system() != "Linux":
        return "the shim's fibers are written for Linux"
    return "" if compiler() else "no C++ compiler on PATH; install g++"


def build(program: Program, say: Callable[[str], None] = lambda line: None) -> Path:
    """Compile and link into one file, unless that was done before.

    Args:
        say: told what has been compiled.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    cxx = compiler()
    flags = [*FLAGS, *program.options, f"-I{CSRC}", f"-I{HERE}"]
    shim = {".cu": ["-include", str(SHIM)], ".cpp": []}
    commands = [[cxx, *flags, *shim[s.suffix], "-c", "-x", "c++", str(s)] for s in program.sources]
    made_by = digest((CSRC, HERE), repr(commands), run([cxx, "--version"]))
    target = cache("host_cuda") / f"{program.name}-{made_by}"

    def make(made: Path) -> None:
        objects = [str(made.with_name(f"{number}.o")) for number in range(len(commands))]
        run_all(
            {
                f"{program.name}: {source.name}": [*command, "-o", to]
                for source, command, to in zip(program.sources, commands, objects, strict=True)
            },
            say,
        )
        run([cxx, *flags, *objects, "-o", str(made)])

    return once(target, make)


def main() -> None:
    parser = argparse.ArgumentParser(description="compile what tests need of the CUDA sources")
    parser.add_argument("--quick", action="store_true", help="only what test-quick needs")
    quick = parser.parse_args().quick
    if unavailable():
        print(f"the CUDA kernels are not run on the host: {unavailable()}")
        return
    every = (STEP, SELFTEST, SANITIZED, THREADED, AS_OPENMP)
    for program in (STEP, SELFTEST) if quick else every:
        try:
            build(program, lambda line: print(line, flush=True))
        except RuntimeError as error:  # the tests that need it say so again, or skip
            print(f"{program.name}: {error}", flush=True)


if __name__ == "__main__":
    main()
