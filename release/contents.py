"""What a wheel and a source distribution have to hold, and nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "stackelberg_fused"
MAPPED = ("triton_kernels", "benchmarks")  # top-level folders that are installed inside the package
NATIVE = re.compile(rf"{PACKAGE}/(_cpu|_cuda)\.[\w-]+\.so")
MADE = {f"{PACKAGE}/py.typed", f"{PACKAGE}/_build_info.json"}


def expected_modules(checkout: Path) -> dict[str, Path]:
    """Return the Python files that a wheel holds: their names in it, and where they lie in the checkout."""
    files = {p.relative_to(checkout).as_posix(): p for p in (checkout / PACKAGE).rglob("*.py")}
    for folder in MAPPED:
        for path in (checkout / folder).rglob("*.py"):
            files[f"{PACKAGE}/{path.relative_to(checkout).as_posix()}"] = path
    return files


def build_info(wheel: Path) -> dict:
    """Return the record of the native build in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read(f"{PACKAGE}/_build_info.json"))


def wheel_faults(wheel: Path, checkout: Path) -> list[str]:
    """Compare a wheel with the checkout that it comes from: a line for each file that is missing, other or too many."""
    modules = expected_modules(checkout)
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        info = json.loads(archive.read(f"{PACKAGE}/_build_info.json"))
        other = [
            name
            for name, path in modules.items()
            if name in names and archive.read(name) != path.read_bytes()
        ]
    built = {name for name, module in info["modules"].items() if module["built"]}
    native = {name: match[1] for name in names if (match := NATIVE.fullmatch(name))}
    metadata = {name for name in names if re.match(rf"{PACKAGE}-[^/]+\.dist-info/", name)}
    faults = [f"{name} is missing" for name in sorted({*modules, *MADE} - names)]
    faults += [f"{name} is not the one of the checkout" for name in sorted(other)]
    # a folder of libraries is one that auditwheel made
    known = {*modules, *MADE, *native, *metadata}
    faults += [f"{name} does not belong there" for name in sorted(names - known)]
    if sorted(native.values()) != sorted(built):
        faults.append(f"native modules: {sorted(native)}, but built were {sorted(built)}")
    return faults


def sdist_faults(archive: Path, checkout: Path) -> list[str]:
    """Compare a source distribution with what git keeps: setuptools takes everything that lies in a folder."""
    if not (checkout / ".git").exists():
        return []  # that is a source distribution itself
    command = ["git", "-C", str(checkout), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    with tarfile.open(archive) as files:
        names = {member.name.partition("/")[2] for member in files.getmembers() if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    unknown = {name for name in names if ".egg-info/" not in name} - made
    unknown -= set(listed.stdout.split("\0"))
    return [f"{name} is not in git" for name in sorted(unknown)]
