"""What `compile_triton.py` writes for every architecture, compiled once per content and kept in build/."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from build_once import cache, kept_by_triton, once
from paths import ROOT, SUPPORT

from stackelberg_fused.groups.rules import MIXED_RULES, RULES, Rule

# every rule for one architecture, one rule per set of buffers for the others; the launch that mixes rules costs seconds
# to compile: once for each of the two assemblers that Triton has
EVERY = (*RULES, MIXED_RULES)
SHORT = (0, Rule.AMSGRAD, Rule.SGD, Rule.SGD | Rule.MOMENTUM)
COMPILED = {80: SHORT, 90: EVERY, 100: SHORT, 120: (*SHORT, MIXED_RULES)}


def compiled() -> Path:
    """The folder with the compiled kernels: two processes share the architectures.

    Raises:
        RuntimeError: with the compiler's messages.
    """
    jobs = [
        f"{arch}:{','.join(str(int(rule)) for rule in rules)}" for arch, rules in COMPILED.items()
    ]
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
    for path in (*sources, SUPPORT / "compile_triton.py", SUPPORT / "named_schemes.py"):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]
