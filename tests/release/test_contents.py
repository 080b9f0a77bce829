"""What a wheel and a source distribution hold, found out of files that are small and wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from contents import sdist_faults, wheel_faults

MODULES = ("stackelberg_fused/__init__.py", "triton_kernels/adam.py", "benchmarks/__init__.py")
CPU = "stackelberg_fused/_cpu.cpython-311-x86_64-linux-gnu.so"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in MODULES:
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return tmp_path / "checkout"


def packed(into: Path, **changed: str | None) -> Path:
    """A wheel of the checkout, with other files, or None for one that is left out."""
    built = {"_cpu": {"built": True}, "_cuda": {"built": False}}
    files: dict[str, str | None] = {
        "stackelberg_fused/__init__.py": "# stackelberg_fused/__init__.py\n",
        "stackelberg_fused/triton_kernels/adam.py": "# triton_kernels/adam.py\n",
        "stackelberg_fused/benchmarks/__init__.py": "# benchmarks/__init__.py\n",
        "stackelberg_fused/py.typed": "",
        "stackelberg_fused/_build_info.json": json.dumps({"modules": built}),
        CPU: "",
        "stackelberg_fused-0.1.0.dist-info/RECORD": "",
    }
    wheel = into / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, **changed}.items():
            if text is not None:
                archive.writestr(name, text)
    return wheel


def test_a_wheel_of_the_checkout_has_no_fault(checkout: Path, tmp_path: Path) -> None:
    assert wheel_faults(packed(tmp_path), checkout) == []


@pytest.mark.parametrize(
    "name, text, fault",
    [
        ("stackelberg_fused/py.typed", None, "stackelberg_fused/py.typed is missing"),
        (
            "stackelberg_fused/triton_kernels/adam.py",
            "# of yesterday\n",
            "stackelberg_fused/triton_kernels/adam.py is not the one of the checkout",
        ),
        ("tests/test_setup.py", "", "tests/test_setup.py does not belong there"),
        # what auditwheel vendors lies in such a folder
        ("stackelberg_fused.libs/a.so", "", "stackelberg_fused.libs/a.so does not belong there"),
        (CPU, None, "native modules: [], but built were ['_cpu']"),
    ],
    ids=["missing", "other", "tests", "vendored", "native"],
)
def test_faults_of_a_wheel(
    checkout: Path, tmp_path: Path, name: str, text: str | None, fault: str
) -> None:
    assert wheel_faults(packed(tmp_path, **{name: text}), checkout) == [fault]


@pytest.mark.skipif(not shutil.which("git"), reason="no git on PATH")
def test_a_source_distribution_holds_what_git_keeps(checkout: Path, tmp_path: Path) -> None:
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    (checkout / "benchmarks" / "scratch.py").touch()
    archive = tmp_path / "a-0.1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as files:
        files.add(checkout / "benchmarks", "a-0.1.0/benchmarks")
        files.add(checkout / MODULES[0], "a-0.1.0/PKG-INFO")
    assert sdist_faults(archive, checkout) == ["benchmarks/scratch.py is not in git"]
    shutil.rmtree(checkout / ".git")
    assert sdist_faults(archive, checkout) == []
