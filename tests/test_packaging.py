"""Builds, wheels and installs: what is in them, and what happens where something is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["csrc", "stackelberg_fused", "triton_kernels", "benchmarks", "requirements", ".ci"]
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


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment less our own switches (CI sets some), and less CUDA unless asked for."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("STACKELBERG_", "PYTHONPATH"))}
    return {**kept, "STACKELBERG_BUILD_CUDA": "0", **extra}


def python(code: str, *arguments: str, cwd: Path, flags: tuple[str, ...] = (), **extra: str) -> str:
    command = [sys.executable, *flags, "-c", code, *arguments]
    env = clean_environment(**extra)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
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
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, timeout=300)


def info(tree: Path) -> dict:
    return json.loads((tree / "stackelberg_fused" / "_build_info.json").read_text())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with its compiled objects, so that nothing is compiled twice."""
    copy = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=skip)
    for name in FILES:
        shutil.copy2(ROOT / name, copy / name)
    if (ROOT / "build" / "native").is_dir():
        shutil.copytree(ROOT / "build" / "native", copy / "build" / "native")
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The real setup.py over sources that compile in an instant."""
    project = tmp_path / "small"
    for folder in ("csrc/cpu", "csrc/cuda", "stackelberg_fused"):
        (project / folder).mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, project / name)
    shutil.copy2(ROOT / "stackelberg_fused" / "_version.py", project / "stackelberg_fused")
    (project / "stackelberg_fused" / "__init__.py").touch()
    (project / "csrc/cpu/kernel.cpp").write_text("int SF_ISA() { return 1; }\n")
    (project / "csrc/cpu/other.cpp").write_text(
        '#include "cpu/other.h"\nint other() { return N; }\n'
    )
    (project / "csrc/cpu/other.h").write_text("#define N 1\n")
    (project / "csrc/cuda/step.cu").write_text("")
    (project / "csrc/cuda/bindings.cpp").write_text("int bindings() { return 1; }\n")
    return project


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


@needs_setuptools
def test_a_module_that_was_asked_for_fails_the_installation(small: Path) -> None:
    done = build_ext(small, CXX="/nonexistent/c++", STACKELBERG_BUILD_CPU="1")
    assert done.returncode != 0
    assert "STACKELBERG_BUILD_CPU=1" in done.stderr
    assert "/nonexistent/c++" in done.stderr


@needs_tools
def test_rebuilds_only_what_changed(small: Path) -> None:
    first = build_ext(small)
    assert info(small)["modules"]["_cpu"] == {"built": True, "reason": ""}, first.stdout
    module = small / "stackelberg_fused" / f"_cpu{SUFFIX}"
    assert module.is_file()
    assert "no work to do" in build_ext(small).stdout
    (small / "csrc/cpu/other.h").write_text("#define N 2\n")
    again = build_ext(small).stdout
    # one object and the link, however many others there are
    assert "[2/2]" in again
    script = next((small / "build").rglob("_cpu/build.ninja")).read_text()
    isas = re.findall(r"-DSF_ISA=(\w+)", script)
    assert isas == (["avx512", "avx2", "baseline"] if "-DSF_X86=1" in script else ["baseline"])
    for forbidden in ("-march", "-ffast-math", "-Ofast", "openmp", "torch"):
        assert forbidden not in script


@needs_tools
def test_an_error_in_a_source_is_reported_and_leaves_no_stale_module(small: Path) -> None:
    build_ext(small)
    (small / "csrc/cpu/other.h").write_text("#error of ours\n")
    done = build_ext(small)
    assert done.returncode == 0
    assert "WARNING: stackelberg_fused._cpu is not built" in done.stderr
    assert "of ours" in info(small)["modules"]["_cpu"]["reason"]
    assert list((small / "stackelberg_fused").glob("*.so")) == []


@needs_tools
@pytest.mark.parametrize(
    "asked, archs",
    [
        ("", ["sm_80", "sm_90", "compute_90"]),  # what this toolkit knows of the default
        ("90", ["sm_90"]),
        ("80;9.0+PTX", ["sm_80", "sm_90", "compute_90"]),
    ],
)
def test_cuda_targets(small: Path, asked: str, archs: list[str]) -> None:
    """With a stand-in for nvcc, so that it runs where there is no toolkit."""
    toolkit = small / "toolkit"
    for folder in ("bin", "include", "lib64"):
        (toolkit / folder).mkdir(parents=True)
    (toolkit / "include/cuda_runtime_api.h").write_text("#define CUDART_VERSION  12040\n")
    (toolkit / "lib64/libcudart_static.a").write_bytes(b"!<arch>\n")
    (toolkit / "bin/nvcc").write_text(f"""#!/bin/sh
case "$*" in
--version) echo "Cuda compilation tools, release 12.4, V12.4.1" ;;
--list-gpu-arch) echo "compute_80 compute_90" ;;
*--dryrun*) echo '#$ TOP={toolkit}'; echo '#$ INCLUDES="-I{toolkit}/include"' ;;
*) while [ "$1" != -o ]; do shift; done; exec {COMPILER} -fPIC -x c++ -c /dev/null -o "$2" ;;
esac
""")
    (toolkit / "bin/nvcc").chmod(0o755)
    extra = {"CUDA_HOME": str(toolkit), "STACKELBERG_CUDA_ARCHS": asked}
    done = build_ext(small, STACKELBERG_BUILD_CUDA="1", **extra)
    assert done.returncode == 0, done.stdout + done.stderr
    assert info(small)["archs"] == archs
    assert info(small)["cudart"] == "12040"
    assert info(small)["nvcc"] == "release 12.4, V12.4.1"
    script = next((small / "build").rglob("_cuda/build.ninja")).read_text()
    codes = re.findall(r"-gencode=arch=compute_\d+,code=(\w+)", script)
    assert codes == archs
    assert "-fmad=false" in script


def test_every_requirement_is_pinned() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            assert re.match(r"[\w-]+==[\w.]+(; .*)?$", line), f"{path.name}: {line}"


def test_gpu_check_says_so_where_there_is_no_gpu(tmp_path: Path) -> None:
    blind = tmp_path / "python"
    blind.write_text("#!/bin/sh\nexit 0\n")  # a torch that sees no device prints an empty line
    blind.chmod(0o755)
    command = ["bash", str(ROOT / "benchmarks/gpu_check.sh"), str(tmp_path / "out")]
    env = clean_environment(PYTHON=str(blind))
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no GPU" in done.stdout
    assert "no GPU" in (tmp_path / "out/summary.txt").read_text()
