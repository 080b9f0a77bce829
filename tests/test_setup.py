"""setup.py over sources that compile in an instant: rebuilds, errors, targets."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from building import (
    COMPILER,
    SUFFIX,
    build_ext,
    info,
    needs_setuptools,
    needs_tools,
    python,
)
from paths import ROOT


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
    (project / "csrc/cpu/step.cpp").write_text("int SF_ISA() { return 1; }\n")
    (project / "csrc/cpu/other.cpp").write_text(
        '#include "cpu/other.h"\nint other() { return N; }\n'
    )
    (project / "csrc/cpu/other.h").write_text("#define N 1\n")
    (project / "csrc/cuda/step.cu").write_text("")
    (project / "csrc/cuda/bindings.cpp").write_text("int bindings() { return 1; }\n")
    return project


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
    for forbidden in (
        "-march",
        "-ffast-math",
        "-Ofast",
        "openmp",
        "-ltorch",
        "site-packages/torch",
    ):
        assert forbidden not in script


@needs_tools
def test_kernels_are_compiled_once_for_all_interpreters(small: Path) -> None:
    build_ext(small)
    other = """
import runpy, sys
sys.implementation.cache_tag = "other-1"
sys.argv = ["setup.py", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""
    printed = python(other, cwd=small)
    compiled = set(re.findall(r"-c (csrc/\S+)", printed))
    assert compiled == {"csrc/cpu/other.cpp"}, printed
    native = small / "build" / "native" / "_cpu"
    objects = {path.relative_to(native).as_posix() for path in native.rglob("*.o")}
    assert {"step.cpp.baseline.o", "other-1/other.cpp.o"} <= objects
    # and what one interpreter has of its own is still there for it
    assert "no work to do" in build_ext(small).stdout


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
