"""Compiles CUDA sources with g++ behind the shim, once per content of the sources."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from paths import CSRC, ROOT

HERE = Path(__file__).resolve().parent
SHIM = HERE / "shim.h"
# the CPU kernel's, see setup.py: the bits of the result depend on them
FLOAT_FLAGS = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")
# -U: the fortified longjmp refuses to jump to another stack
FLAGS = ("-std=c++17", "-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", "-fPIC", *FLOAT_FLAGS)


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


def build(name: str, sources: Sequence[Path], options: Sequence[str] = ("-O2", "-shared")) -> Path:
    """Compile and link into one file, unless that was done before.

    Args:
        sources: .cu files get the shim in front; .cpp files are compiled as they are.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    cxx = compiler()
    flags = [*FLAGS, *options, f"-I{CSRC}", f"-I{HERE}"]
    shim = {".cu": ["-include", str(SHIM)], ".cpp": []}
    commands = [[cxx, *flags, *shim[s.suffix], "-c", "-x", "c++", str(s)] for s in sources]
    target = _cache() / f"{name}-{_digest(commands)}"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            objects = []
            for number, command in enumerate(commands):
                objects.append(f"{folder}/{number}.o")
                _run([*command, "-o", objects[-1]])
            _run([cxx, *flags, *objects, "-o", f"{folder}/{name}"])
            os.replace(f"{folder}/{name}", target)  # whole or not at all: tests may run in parallel
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")


def _digest(commands: list[list[str]]) -> str:
    digest = hashlib.sha256(repr(commands).encode())
    digest.update(subprocess.run([compiler(), "--version"], stdout=subprocess.PIPE).stdout)
    for folder in (CSRC, HERE):
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".h", ".cuh", ".cu", ".cpp"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache() -> Path:
    folder = ROOT / "build" / "host_cuda"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only checkout
        folder = Path(tempfile.gettempdir(), f"stackelberg_host_cuda_{os.getuid()}")
        folder.mkdir(exist_ok=True)
    return folder
