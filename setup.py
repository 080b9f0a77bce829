"""Build of the two native modules, with ninja; everything else is in pyproject.toml.

A module that cannot be built here is left out and the reason written to ``_build_info.json``
beside the package, where ``python -m stackelberg_fused doctor`` finds it: the installation itself
succeeds. Environment variables:

STACKELBERG_BUILD_CPU, STACKELBERG_BUILD_CUDA   0: leave out; 1: fail if it cannot be built
STACKELBERG_CUDA_ARCHS                          e.g. "90" or "80;90+PTX"
CXX, CUDA_HOME, MAX_JOBS                        as everywhere
"""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

MAPPED = ("triton_kernels", "benchmarks")  # top-level folders installed inside the package only
DEFAULT_ARCHS = ("80", "90", "100", "120")
X86 = platform.machine().lower() in ("x86_64", "amd64")
MAC = sys.platform == "darwin"
CXXFLAGS = [
    *("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
    *("-fvisibility=hidden", "-fPIC", "-pthread", "-Wall", "-Icsrc"),
    *(["-DSF_X86=1"] if X86 else []),
]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]  # every processor with AVX2 has F16C
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# these are compiled once per instruction set, and csrc/cpu/dispatch.cpp chooses the best at run time
PER_ISA = ("csrc/cpu/step.cpp", "csrc/cpu/bandwidth_probe.cpp")
ISAS = {"avx512": [*AVX512, "-mprefer-vector-width=512"], "avx2": AVX2} if X86 else {}
ISAS["baseline"] = []
RULES = """\
rule cxx
  command = $cxx $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule nvcc
  command = $nvcc $flags -MMD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = $cxx $in $flags -o $out
"""


class Unavailable(Exception):
    """A native module cannot be built here; the text is what doctor shows."""


def output(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout.strip()


def find_cxx() -> list[str]:
    wanted = os.environ.get("CXX")
    for candidate in [wanted] if wanted else ["g++", "c++", "clang++"]:
        words = shlex.split(candidate)
        if words and shutil.which(words[0]):
            return words
    if wanted:
        raise Unavailable(f"CXX={wanted} is not a program; unset CXX or name a C++17 compiler")
    raise Unavailable("no C++ compiler on PATH; install g++ or clang++, or set CXX")


def find_nvcc() -> str:
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "PATH", "/usr/local/cuda"]
    for root in filter(None, roots):
        found = shutil.which("nvcc" if root == "PATH" else os.path.join(root, "bin", "nvcc"))
        if found:
            return found
    raise Unavailable("nvcc not found; install the CUDA toolkit or set CUDA_HOME")


def cuda_paths(nvcc: str) -> tuple[list[str], str, str]:
    """Include flags, libcudart_static.a and its version, as nvcc itself would find them."""
    plan = output(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)
    includes = re.findall(r'"-I([^"]+)"', plan)
    top = "".join(re.findall(r"^#\$ TOP=(.*)$", plan, re.MULTILINE))
    folders = [*re.findall(r'"-L([^"]+)"', plan), f"{top}/lib64", f"{top}/lib"]
    archives = [p for p in (Path(f, "libcudart_static.a") for f in folders) if p.is_file()]
    headers = [p for p in (Path(i, "cuda_runtime_api.h") for i in includes) if p.is_file()]
    if not archives or not headers:
        raise Unavailable(f"{nvcc} has no libcudart_static.a or cuda_runtime_api.h beside it")
    version = re.search(r"define CUDART_VERSION\s+(\d+)", headers[0].read_text(errors="replace"))
    return [f"-I{i}" for i in includes], str(archives[0]), version[1] if version else "0"


def cuda_archs(nvcc: str) -> list[str]:
    """Targets in nvcc's own words, e.g. ["sm_90", "compute_90"] for "90+PTX"."""
    known = re.findall(r"compute_(\w+)", output(nvcc, "--list-gpu-arch"))
    asked = os.environ.get("STACKELBERG_CUDA_ARCHS", "").replace(".", "")
    wanted = [a for a in re.split(r"[;,\s]+", asked) if a]
    if not wanted:
        wanted = [a for a in DEFAULT_ARCHS if a in known] or DEFAULT_ARCHS[:1]
        wanted = [*wanted[:-1], f"{wanted[-1]}+PTX"]
    sm = [f"sm_{a.removesuffix('+PTX')}" for a in wanted]
    return sm + [f"compute_{a.removesuffix('+PTX')}" for a in wanted if a.endswith("+PTX")]


def python_includes() -> list[str]:
    try:
        import pybind11
    except ImportError:
        raise Unavailable("pybind11 is not installed; pip install pybind11") from None
    paths = sysconfig.get_paths()
    if not Path(paths["include"], "Python.h").is_file():
        raise Unavailable(f"no Python.h in {paths['include']}; install python3-dev")
    folders = dict.fromkeys([pybind11.get_include(), paths["include"], paths["platinclude"]])
    return [f"-I{folder}" for folder in folders]


def run_ninja(script: Path, log: Path) -> None:
    try:
        import ninja

        program = str(Path(ninja.BIN_DIR, "ninja"))
    except ImportError:
        program = shutil.which("ninja") or ""
    if not program:
        raise Unavailable("ninja is not installed; pip install ninja")
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    command = [program, "-f", str(script), *jobs]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    log.write_text(done.stdout)
    if done.returncode:
        errors = [line for line in done.stdout.splitlines() if "error" in line.lower()]
        raise Unavailable(f"compilation failed: {(errors or ['?'])[0].strip()[:300]}; see {log}")


class NinjaBuild(build_ext):
    """Compiles into build/native, which outlives pip's temporary folders: rebuilds are quick.

    The kernels, which take the most time, know no Python and see no header of it: their objects serve every
    interpreter. The others lie in a folder of each.
    """

    def run(self) -> None:
        self.info = {"version": self.distribution.get_version(), "modules": {}}
        self.info["python"] = platform.python_version()
        for ext in self.extensions:
            name = ext.name.rpartition(".")[2]
            target = Path(self.get_ext_fullpath(ext.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            switch = f"STACKELBERG_BUILD{name.upper()}"
            reason = ""
            try:
                if os.environ.get(switch) == "0":
                    raise Unavailable(f"left out by {switch}=0; unset it and install again")
                fresh = self.compile(name, [Path(source) for source in sorted(ext.sources)])
                partial = shutil.copy2(fresh, target.with_suffix(".partial"))
                os.replace(partial, target)  # a process that has the old one mapped keeps it
            except Unavailable as missing:
                reason = str(missing)
                if os.environ.get(switch) == "1":
                    raise SystemExit(f"{name} ({switch}=1): {reason}") from None
                target.unlink(missing_ok=True)  # a stale module would contradict the reason
                print(f"WARNING: {ext.name} is not built: {reason}", file=sys.stderr)
            self.info["modules"][name] = {"built": not reason, "reason": reason}
        target.with_name("_build_info.json").write_text(json.dumps(self.info, indent=2) + "\n")

    def compile(self, name: str, sources: list[Path]) -> Path:
        if not sources:
            raise Unavailable(f"no sources under csrc/{name[1:]}")
        cxx = find_cxx()
        self.info["compiler"] = output(*cxx, "--version").partition("\n")[0]
        bindings = CXXFLAGS + python_includes()
        link = ["-bundle", "-undefined", "dynamic_lookup"] if MAC else ["-shared", "-ldl"]
        variables = {"cxx": cxx}
        if name == "_cuda":
            nvcc = find_nvcc()
            self.info["nvcc"] = "".join(re.findall("release .*", output(nvcc, "--version")))
            includes, archive, self.info["cudart"] = cuda_paths(nvcc)
            bindings += includes
            archs = self.info["archs"] = cuda_archs(nvcc)
            host = ",".join(f for f in CXXFLAGS if f.startswith(("-f", "-p")))
            nvcc_flags = [*("-std=c++17", "-O3", "-fmad=false", "--cudart", "static", "-Icsrc")]
            nvcc_flags += ["--threads", "2", "-Xcompiler", host]
            nvcc_flags += [f for f in CXXFLAGS if f.startswith("-D")]
            for arch in archs:
                nvcc_flags.append(f"-gencode=arch=compute_{arch.partition('_')[2]},code={arch}")
            variables["nvcc"] = [nvcc]
            # torch carries a cudart of its own: ours must not be visible to it, nor its to us
            link += [archive, "-Wl,--exclude-libs,ALL", "-lrt", "-ldl", "-lpthread"]
        base = Path("build", "native", name)
        of_python = base / sys.implementation.cache_tag
        lines = [f"builddir = {base}", *(f"{k} = {words(v)}" for k, v in variables.items()), RULES]
        objects = []

        def edge(folder: Path, source: Path, rule: str, options: list[str], isa: str = "") -> None:
            objects.append(folder / f"{source.name}{isa}.o")
            lines.append(f"build {objects[-1]}: {rule} {source}\n  flags = {words(options)}")

        for source in sources:
            if source.as_posix() in PER_ISA:
                for isa, extra in ISAS.items():
                    edge(base, source, "cxx", [*CXXFLAGS, f"-DSF_ISA={isa}", *extra], f".{isa}")
            elif source.suffix == ".cu":
                edge(base, source, "nvcc", nvcc_flags)
            else:
                edge(of_python, source, "cxx", bindings)
        module = of_python / f"{name}.so"
        inputs = " ".join(map(str, objects))
        lines.append(f"build {module}: link {inputs}\n  flags = -pthread {words(link)}\n")
        base.mkdir(parents=True, exist_ok=True)
        script = base / "build.ninja"
        script.write_text("\n".join(lines))
        run_ninja(script, base / "build.log")
        return module


class FreshPy(build_py):
    """Empties build/lib first: setuptools would ship modules that the tree no longer has."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class VisibleEditable(editable_wheel):
    """An editable install that type checkers find.

    Since folders are mapped into the package, setuptools installs an import hook, which mypy and pyright do not run:
    they read search paths. The checkout cannot be one, or its other folders could be imported by their bare names; so
    one is added with nothing in it but a link to the package. Python itself is kept from looking there, so that the
    hook answers and files have their real paths.
    """

    UNSEEN = (
        "import sys; sys.path_importer_cache[{!r}] = type('Unseen', (), {{"
        "'find_spec': lambda self, name, target=None: None, 'invalidate_caches': lambda self: None}})()"
    )

    def run(self) -> None:
        super().run()
        link = Path("build", "editable", "stackelberg_fused").absolute()
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(Path("stackelberg_fused").absolute(), target_is_directory=True)
        except OSError as error:  # not everybody may make one on Windows
            print(f"type checkers will not find the package: {error}", file=sys.stderr)
            return
        for wheel in Path(self.dist_dir).glob("*.whl"):
            append_to_pth(wheel, f"\n{self.UNSEEN.format(str(link.parent))}\n{link.parent}\n")


def append_to_pth(wheel: Path, lines: str) -> None:
    """Add lines to the .pth file of a wheel, and say so in its record."""
    with zipfile.ZipFile(wheel) as archive:
        files = {info: archive.read(info) for info in archive.infolist()}
    for info in [info for info in files if info.filename.endswith(".pth")]:
        files[info] = content = files[info].rstrip() + os.fsencode(lines)
        digest = urlsafe_b64encode(sha256(content).digest()).rstrip(b"=").decode()
        record = next(i for i in files if i.filename.endswith(".dist-info/RECORD"))
        rows = files[record].decode().splitlines()
        rows = [row for row in rows if not row.startswith(f"{info.filename},")]
        rows.append(f"{info.filename},sha256={digest},{len(content)}")
        files[record] = "\n".join([*rows, ""]).encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in files.items():
            archive.writestr(info, content)


def words(options: list[str]) -> str:
    return shlex.join(options).replace("$", "$$")


def sources(pattern: str) -> list[str]:
    return [path.as_posix() for path in sorted(Path("csrc").glob(pattern))]


packages = find_packages(include=["stackelberg_fused", "stackelberg_fused.*"])
for folder in MAPPED:
    inner = find_packages(include=[folder, f"{folder}.*"])
    packages += [f"stackelberg_fused.{package}" for package in inner]

setup(
    packages=packages,
    package_dir={f"stackelberg_fused.{folder}": folder for folder in MAPPED},
    package_data={"stackelberg_fused": ["py.typed"]},
    include_package_data=False,
    ext_modules=[
        Extension("stackelberg_fused._cpu", sources("cpu/*.cpp")),
        Extension("stackelberg_fused._cuda", sources("cuda/*.cu") + sources("cuda/*.cpp")),
    ],
    cmdclass={"build_ext": NinjaBuild, "build_py": FreshPy, "editable_wheel": VisibleEditable},
)
