"""Which interpreters `make wheels` finds, and what it says of those that cannot build."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import pytest
from interpreters import Unusable, candidates, find

MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is installed: its folders bin, pyenv and uv."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "uv"))
    return tmp_path


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def this_python(path: Path) -> Path:
    return program(path, f'exec "{sys.executable}" "$@"')


def test_a_path_is_taken_as_it_is() -> None:
    found = find(sys.executable)
    assert (found.path, found.version) == (Path(sys.executable), platform.python_version())
    assert found.tag == f"cp{MINOR.replace('.', '')}"


def test_a_shim_for_a_version_that_is_not_chosen_is_passed_over(machine: Path) -> None:
    """pyenv puts one on PATH for each version that it has; it fails unless that version is chosen."""
    program(machine / "bin" / f"python{MINOR}", "echo 'pyenv: command not found' >&2; exit 127")
    behind = this_python(machine / "pyenv" / "versions" / f"{MINOR}.1" / "bin" / f"python{MINOR}")
    assert find(MINOR).path == behind
    behind.unlink()
    with pytest.raises(Unusable, match=r"bin/python3\.\d+: pyenv: command not found$"):
        find(MINOR)


def test_newest_release_of_a_version_comes_first(machine: Path) -> None:
    for folder in ("9", "10", "0rc2"):
        this_python(machine / "pyenv/versions" / f"{MINOR}.{folder}" / "bin" / f"python{MINOR}")
    managed = machine / "uv" / f"cpython-{MINOR}.11-linux-x86_64-gnu" / "bin" / f"python{MINOR}"
    this_python(managed)
    existing = [
        path for path in candidates(MINOR) if path.is_relative_to(machine) and path.exists()
    ]
    versions = [path.parent.parent.name for path in existing[:3]]
    assert versions == [f"{MINOR}.10", f"{MINOR}.9", f"{MINOR}.0rc2"]
    assert existing[3:] == [managed]


@pytest.mark.parametrize(
    "found, reason",
    [
        ({}, ""),
        ({"cpython": False}, "not CPython"),
        ({"free_threaded": True}, "global interpreter lock"),
        ({"header": "/nonexistent/Python.h"}, "no /nonexistent/Python.h; install python3-dev"),
        ({"ensurepip": False}, "install python3-venv"),
        ({"version": "3.9.1"}, "is 3.9.1"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_build_says_why(machine: Path, found: dict, reason: str) -> None:
    header = this_python(machine / "Python.h")  # any file
    good = {"version": f"{MINOR}.1", "cpython": True, "free_threaded": False, "ensurepip": True}
    answer = str({**good, "header": str(header), **found})
    for text, word in (("'", '"'), ("True", "true"), ("False", "false")):
        answer = answer.replace(text, word)
    program(machine / "bin" / f"python{MINOR}", f"echo '{answer}'")
    if not reason:
        assert find(MINOR).version == f"{MINOR}.1"
        return
    with pytest.raises(Unusable, match=reason):
        find(MINOR)


def test_where_it_looked_is_said(machine: Path) -> None:
    with pytest.raises(Unusable, match="not on PATH, of pyenv or uv, or in /opt/python"):
        find("3.2")
    with pytest.raises(Unusable, match="nowhere/python"):
        find(f"nowhere{os.sep}python")
