"""Builds, each in a process of its own, for the tests of packaging."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from paths import ROOT
from patience import patience

SOURCES = [
    "csrc",
    "stackelberg_fused",
    "triton_kernels",
    "benchmarks",
    "requirements",
    "release",
    ".ci",
]
FILES = ["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile"]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

TOOLS = {name: importlib.util.find_spec(name) for name in ("setuptools", "pybind11", "ninja")}
TOOLS["ninja"] = TOOLS["ninja"] or shutil.which("ninja")
COMPILERS = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
TOOLS["a C++ compiler"] = COMPILER = next(filter(None, map(shutil.which, COMPILERS)), "")
MISSING = [name for name, found in TOOLS.items() if not found]
needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"building needs {', '.join(MISSING)}")
needs_setuptools = pytest.mark.skipif(not TOOLS["setuptools"], reason="needs setuptools")

# what a PEP 517 front end calls, without the front end: no network, no second environment
HOOK = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""
# with -S: an interpreter that sees one installation and the libraries, but runs no .pth file of
# theirs, since an editable install of this very checkout would answer for the one under test
ISOLATED = f"""
import site, sys
site.addsitedir(sys.argv[1])
sys.path += {[p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]}
"""


def copy_of_checkout(into: Path) -> Path:
    """The sources and their compiled objects, so that nothing is compiled twice."""
    skip = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
    for name in SOURCES:
        shutil.copytree(ROOT / name, into / name, ignore=skip)
    for name in FILES:
        shutil.copy2(ROOT / name, into / name)
    if (ROOT / "build" / "native").is_dir():
        shutil.copytree(ROOT / "build" / "native", into / "build" / "native")
    return into


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment less our own switches (CI sets some), and less CUDA unless asked for."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STACKELBERG_", "PYTHONPATH"))}
    return {**kept, "STACKELBERG_BUILD_CUDA": "0", **extra}


def python(code: str, *arguments: str, cwd: Path, flags: tuple[str, ...] = (), **extra: str) -> str:
    command = [sys.executable, *flags, "-c", code, *arguments]
    env = clean_environment(**extra)
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=patience(100)
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(hook: str, tree: Path, into: Path, **extra: str) -> Path:
    into.mkdir(parents=True, exist_ok=True)
    return into / python(HOOK, hook, str(into), cwd=tree, **extra).split()[-1]


def unpack(wheel: Path, into: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)
    return into


def build_ext(tree: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    env = clean_environment(**extra)
    return subprocess.run(
        command, cwd=tree, env=env, capture_output=True, text=True, timeout=patience(100)
    )


def info(tree: Path) -> dict:
    return json.loads((tree / "stackelberg_fused" / "_build_info.json").read_text())
