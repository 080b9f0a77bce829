"""Builds, wheels and installs: what is in them, and what happens where something is missing."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
from building import (
    ISOLATED,
    SUFFIX,
    build,
    clean_environment,
    copy_of_checkout,
    info,
    needs_setuptools,
    needs_tools,
    python,
    unpack,
)
from contents import wheel_faults
from paths import ROOT
from patience import patience

pytestmark = pytest.mark.xdist_group("packages")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_checkout(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@needs_tools
def test_wheel_holds_every_module_under_one_name(tree: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = next(name.split("/")[0] for name in names if name.endswith("/METADATA"))
    assert {name.split("/")[0] for name in names} == {"stackelberg_fused", metadata}
    expected = {p.relative_to(tree) for p in (tree / "stackelberg_fused").rglob("*.py")}
    for folder in ("triton_kernels", "benchmarks"):
        paths = (p.relative_to(tree) for p in (tree / folder).rglob("*.py"))
        expected |= {Path("stackelberg_fused", path) for path in paths}
    assert {name for name in names if name.endswith(".py")} == {p.as_posix() for p in expected}
    others = {name for name in names if not name.endswith(".py") and metadata not in name}
    assert others == {
        "stackelberg_fused/py.typed",
        "stackelberg_fused/_build_info.json",
        f"stackelberg_fused/_cpu{SUFFIX}",
    }
    text = zipfile.ZipFile(wheel).read(f"{metadata}/METADATA").decode()
    assert "Requires-Dist: torch>=2.8\n" in text
    assert re.search(r"""Requires-Dist: triton; platform_system == ['"]Linux['"]\n""", text)
    assert "Requires-Python: >=3.10\n" in text


@pytest.mark.slow
@needs_tools
@pytest.mark.parametrize("kind", ["build_wheel", "build_editable"])
def test_no_top_level_name_leaks(kind: str, tree: Path, wheel: Path, tmp_path: Path) -> None:
    built = wheel if kind == "build_wheel" else build(kind, tree, tmp_path / "wheel")
    site = unpack(built, tmp_path / "site")
    code = """
from importlib.util import find_spec
for name in ("triton_kernels", "benchmarks"):
    spec = find_spec(name)  # a package of that name may be installed: then it is not ours
    print(spec.origin if spec else None)
    print(find_spec(f"stackelberg_fused.{name}").origin)
print(find_spec("stackelberg_fused._cpu").origin)
"""
    found = python(ISOLATED + code, str(site), cwd=tmp_path, flags=("-S",)).splitlines()
    ours = str(tree if kind == "build_editable" else site)
    assert not any(path.startswith((ours, str(ROOT))) for path in (found[0], found[2]))
    assert all(path.startswith(ours) for path in (found[1], found[3], found[4])), found


@needs_tools
def test_sdist_holds_what_a_build_needs(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", tree, tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"setup.py", "pyproject.toml", "Makefile", "requirements/run.txt", "LICENSE"}
    wanted |= {"stackelberg_fused/py.typed", "benchmarks/gpu_check.sh"}
    for folder in ("csrc", "triton_kernels"):
        wanted |= {
            p.relative_to(tree).as_posix() for p in (tree / folder).rglob("*.*") if p.is_file()
        }
    assert {name for name in wanted if "__pycache__" not in name} <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith("build/")]


@pytest.mark.slow
@needs_tools
def test_wheel_of_the_sdist_is_that_of_the_tree(tree: Path, wheel: Path, tmp_path: Path) -> None:
    """As make wheel builds it; nothing is compiled again."""
    with tarfile.open(build("build_sdist", tree, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    (source / "build").mkdir()
    (source / "build" / "native").symlink_to(tree / "build" / "native", target_is_directory=True)
    again = zipfile.ZipFile(build("build_wheel", source, tmp_path / "wheel"))
    once = zipfile.ZipFile(wheel)
    assert set(again.namelist()) == set(once.namelist())
    other = [name for name in once.namelist() if again.read(name) != once.read(name)]
    assert [name for name in other if not name.endswith("/RECORD")] == []
    assert wheel_faults(wheel, tree) == []


@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
class TestNativeModule:
    """The module that the running tests use."""

    @staticmethod
    def path(name: str) -> str:
        spec = importlib.util.find_spec(f"stackelberg_fused.{name}")
        if spec is None:
            pytest.skip(f"{name} is not built here; doctor says why")
        return spec.origin

    def test_imports_without_torch(self, name: str, tmp_path: Path) -> None:
        code = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader(sys.argv[1], sys.argv[2])
spec = importlib.util.spec_from_loader(sys.argv[1], loader)
module = importlib.util.module_from_spec(spec)
loader.exec_module(module)
assert importlib.util.find_spec("torch") is None, "this interpreter was to have no torch"
print(len([n for n in dir(module) if not n.startswith("_")]))
"""
        # -S: no site-packages at all
        assert int(python(code, name, self.path(name), cwd=tmp_path, flags=("-S",))) > 0

    def test_needs_no_library_of_torch_or_cuda(self, name: str) -> None:
        path = self.path(name)
        if not shutil.which("readelf"):
            pytest.skip("no readelf on PATH (binutils)")
        text = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True)
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text.stdout)
        assert needed
        system = r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so|ld-linux"
        assert [library for library in needed if not re.match(system, library)] == []

    def test_exports_only_its_entry(self, name: str) -> None:
        """A second cudart is in the process (torch's): neither may resolve to the other."""
        path = self.path(name)
        if not shutil.which("nm"):
            pytest.skip("no nm on PATH (binutils)")
        command = ["nm", "-D", "--defined-only", path]
        text = subprocess.run(command, capture_output=True, text=True, check=True)
        symbols = [line.split()[-1] for line in text.stdout.splitlines()]
        assert f"PyInit_{name}" in symbols
        assert [symbol for symbol in symbols if symbol.startswith(("cuda", "__cuda", "sf"))] == []


@needs_setuptools
def test_without_a_compiler_the_package_installs_and_says_why(tree: Path, tmp_path: Path) -> None:
    extra = {"CXX": "/nonexistent/c++", "PATH": "/nonexistent", "STACKELBERG_BUILD_CUDA": ""}
    wheel = build("build_wheel", tree, tmp_path / "wheel", **extra)
    site = unpack(wheel, tmp_path / "site")
    assert list(site.rglob("*.so")) == []
    modules = info(site)["modules"]
    assert [modules[name]["built"] for name in ("_cpu", "_cuda")] == [False, False]
    code = "import runpy; sys.argv[1:] = ['doctor']; runpy.run_module('stackelberg_fused', None, '__main__')"
    table = python(ISOLATED + code, str(site), cwd=tmp_path, flags=("-S",), **extra)
    assert re.search(r"^_cpu +no +CXX=/nonexistent/c\+\+ is not a program", table, re.MULTILINE)
    assert "install again" in table


def test_every_requirement_is_pinned() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            assert re.match(r"#|[\w-]+==[\w.]+(; .*)?$", line), f"{path.name}: {line}"


def test_gpu_check_says_so_where_there_is_no_gpu(tmp_path: Path) -> None:
    blind = tmp_path / "python"
    blind.write_text("#!/bin/sh\nexit 0\n")  # a torch that sees no device prints an empty line
    blind.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks/gpu_check.sh"), str(tmp_path / "out")]
    env = clean_environment(PYTHON=str(blind))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=patience(10))
    assert done.returncode == 2
    assert "no GPU" in done.stdout
    assert "no GPU" in (tmp_path / "out/summary.txt").read_text()
