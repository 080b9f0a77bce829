"""Finds the interpreters that can build: on PATH, of pyenv and uv, and those of a manylinux image."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROBE = """
import importlib.util, json, platform, sys, sysconfig
print(json.dumps({
    "version": platform.python_version(),
    "cpython": platform.python_implementation() == "CPython",
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "header": sysconfig.get_paths()["include"] + "/Python.h",
    "ensurepip": importlib.util.find_spec("ensurepip") is not None,
}))
"""


class Unusable(Exception):
    """An interpreter cannot build a wheel; the text says why."""


@dataclass(frozen=True)
class Interpreter:
    """An interpreter that builds wheels.

    Attributes:
        path: the program.
        version: e.g. "3.12.1".
    """

    path: Path
    version: str

    @property
    def minor(self) -> str:
        return ".".join(self.version.split(".")[:2])

    @property
    def tag(self) -> str:
        return f"cp{self.minor.replace('.', '')}"


def probe(path: Path) -> Interpreter:
    """Ask an interpreter what it is.

    Args:
        path: the program.

    Raises:
        Unusable: it does not run, is no CPython with the lock, or lacks headers or ensurepip.
    """
    command = [str(path), "-I", "-c", PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"{path}: {error}") from None
    if done.returncode:  # a shim of pyenv's, for a version that is installed but not chosen
        said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
        raise Unusable(f"{path}: {said}")
    found = json.loads(done.stdout)
    if not found["cpython"] or found["free_threaded"]:
        raise Unusable(f"{path}: not CPython with a global interpreter lock")
    if not Path(found["header"]).is_file():
        raise Unusable(f"{path}: no {found['header']}; install python3-dev")
    if not found["ensurepip"]:
        raise Unusable(f"{path}: no ensurepip; install python3-venv")
    return Interpreter(path, found["version"])


def candidates(minor: str) -> Iterator[Path]:
    """Yield the programs that may be an interpreter of a version such as "3.12", the preferred ones first."""
    name = f"python{minor}"
    for folder in os.get_exec_path():
        yield Path(folder, name)
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT", home / ".pyenv"), "versions")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", home / ".local/share/uv/python"))
    for managed in (pyenv.glob(f"{minor}.*/bin/{name}"), uv.glob(f"cpython-{minor}.*/bin/{name}")):
        yield from sorted(managed, key=_patch, reverse=True)
    digits = minor.replace(".", "")
    yield Path(f"/opt/python/cp{digits}-cp{digits}/bin/{name}")


def _patch(program: Path) -> int:
    """The last number of a version, from the folder that is named after it."""
    release = program.parent.parent.name.removeprefix("cpython-").partition("-")[0]
    last = release.split(".")[-1]
    return int(last) if last.isdecimal() else -1  # 3.14.0rc2 comes last


def find(wanted: str) -> Interpreter:
    """Return the interpreter of a version, or the one at a path.

    Args:
        wanted: a version such as "3.12", or the path of a program.

    Raises:
        Unusable: there is none, with the reason for each program that was found.
    """
    if os.sep in wanted:
        return probe(Path(wanted).absolute())
    reasons = []
    for program in candidates(wanted):
        if not program.is_file():
            continue
        try:
            found = probe(program)
        except Unusable as reason:
            reasons.append(str(reason))
            continue
        if found.minor == wanted:
            return found
        reasons.append(f"{program}: is {found.version}")
    raise Unusable("; ".join(reasons) or "not on PATH, of pyenv or uv, or in /opt/python")
