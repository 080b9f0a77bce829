"""The threads of the CPU backend under ThreadSanitizer: no race, and the bits of one thread."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from host_cuda.build import AS_OPENMP, THREADED, build, unavailable
from patience import patience

pytestmark = [
    pytest.mark.skipif(bool(unavailable()), reason=unavailable()),
    pytest.mark.slow,
    pytest.mark.xdist_group("sanitizers"),
]


@pytest.fixture(scope="module")
def threaded() -> Path:
    """The program host_cuda/threaded.cpp."""
    try:
        return build(THREADED)
    except RuntimeError as error:
        if re.search(r"cannot find.*tsan", str(error)):
            pytest.skip("the compiler has no ThreadSanitizer library")
        raise


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": "", "TSAN_OPTIONS": ""}
    how = {"env": environment, "capture_output": True, "text": True, "timeout": patience(120)}
    done = subprocess.run([str(program), *arguments], **how)
    if "unexpected memory mapping" in done.stderr:
        # more random bits in addresses than the sanitizer knows
        done = subprocess.run(["setarch", "-R", str(program), *arguments], **how)
        if "unexpected memory mapping" in done.stderr or "setarch" in done.stderr:
            pytest.skip("ThreadSanitizer cannot run with this kernel's addresses")
    return done


def _arguments(pool: str) -> list[str]:
    return ["openmp", str(build(AS_OPENMP))] if pool == "torch-openmp" else []


POOLS = ["std::thread", "torch-openmp"]


@pytest.mark.parametrize("pool", POOLS)
def test_threads_do_not_race(threaded: Path, pool: str) -> None:
    done = _run(threaded, *_arguments(pool))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"threads: {pool}" in done.stdout
    assert "0 failures" in done.stdout
    assert "WARNING" not in done.stderr


@pytest.mark.parametrize("pool", POOLS)
def test_a_planted_race_is_found(threaded: Path, pool: str) -> None:
    done = _run(threaded, *_arguments(pool), "race")
    assert done.returncode != 0
    assert re.search("WARNING: ThreadSanitizer: data race", done.stderr), done.stderr
