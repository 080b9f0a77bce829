"""What `compile_triton.py` writes for every architecture, compiled once per content and kept in build/."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from build_once import cache, kept_by_triton, once
from mixed_rules import EVERY, SHORT, name_of
from paths import ROOT, SUPPORT

from stackelberg_fused.groups.rules import RULES

# By architecture: one rule per set of buffers, alone and in a launch that mixes them, and what is usual, Adam for some
# parameters and SGD with momentum for others. For one architecture every rule, which takes most of a minute for the
# launch that mixes all.
SOME = (*map(name_of, SHORT), name_of(SHORT[0], SHORT[-1]), name_of(*SHORT))
COMPILED = {80: SOME, 90: (*map(name_of, RULES), *SOME[-2:], EVERY), 100: SOME, 120: SOME}
# modules of the tests that decide what is compiled
OWN = "compile_triton", "mixed_rules", "named_schemes"


def compiled() -> Path:
    """The folder with the compiled kernels: two processes share the architectures.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    jobs = [f"{arch}:{','.join(names)}" for arch, names in COMPILED.items()]
    target = cache("triton") / f"compiled-{_digest(jobs)}"
    return once(target, lambda folder: _compile(folder, jobs))


def _compile(folder: Path, jobs: list[str]) -> None:
    """Triton keeps what it compiles where tests/ptx finds it, which executes some."""
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = kept_by_triton()
    processes = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "compile_triton.py"), str(folder), *work],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for work in (jobs[:2], jobs[2:])
    ]
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode:
            raise RuntimeError(output)


def _digest(jobs: list[str]) -> str:
    """Of all that decides what is compiled."""
    found = hashlib.sha256(repr((jobs, sys.version, version("triton"), version("torch"))).encode())
    folders = ROOT / "stackelberg_fused", ROOT / "triton_kernels"
    sources = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    for path in (*sources, *(SUPPORT / f"{name}.py" for name in OWN)):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]
