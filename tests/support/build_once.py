"""Things that tests compile: once per content of the sources, kept in build/, by one process while others wait."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paths import ROOT

SOURCES = (".h", ".cuh", ".cu", ".cpp")


def run(command: list[str]) -> str:
    """What a command prints.

    Raises:
        RuntimeError: it failed, with its messages.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}")
    return done.stdout


def jobs() -> int:
    """How many compilers may run at a time."""
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder among processes."""
    import fcntl  # not on Windows, where nothing is built

    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def digest(folders: Iterable[Path], *made_by: str) -> str:
    """A name for what the sources in these folders become by these commands and compilers."""
    found = hashlib.sha256("".join(made_by).encode())
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in SOURCES:
                found.update(path.read_bytes())
    return found.hexdigest()[:16]


def cache(name: str) -> Path:
    """The folder build/NAME, or one for this user where the checkout cannot be written to."""
    folder = ROOT / "build" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir(), f"stackelberg_{name}_{os.getuid()}")
        folder.mkdir(exist_ok=True)
    return folder


def kept_by_triton() -> str:
    """Where Triton keeps what it compiles for tests, by its content; TRITON_CACHE_DIR names another folder."""
    return os.environ.get("TRITON_CACHE_DIR") or str(cache("triton"))
