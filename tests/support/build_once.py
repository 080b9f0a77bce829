"""Things that tests compile: once per content of the sources, kept in build/, by one process while others wait."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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


def run_all(commands: Mapping[str, list[str]], say: Callable[[str], None] | None = None) -> None:
    """Run commands, several at a time.

    Args:
        commands: by a name for what each makes.
        say: told each name when it is done, with the seconds that it took.

    Raises:
        RuntimeError: one of them failed, with its messages.
    """

    def one(name: str) -> None:
        start = time.monotonic()
        run(commands[name])
        if say:
            say(f"{name}, {time.monotonic() - start:.0f} s")

    with ThreadPoolExecutor(jobs()) as pool:
        list(pool.map(one, commands))


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """A file or folder that is made unless it is there; whole or not at all, while other processes wait.

    Args:
        target: where.
        make: writes it to the path that it is given; beside that it may leave what is thrown away.
    """
    if target.exists():
        return target
    with lock(target.parent), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        if not target.exists():
            make(Path(folder, "made"))
            os.replace(Path(folder, "made"), target)
    return target


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
