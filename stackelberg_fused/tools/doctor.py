"""``python -m stackelberg_fused doctor``: what is here, what is missing, what to do about it.

Nothing is imported at the top but the standard library: a broken torch, triton or native module
must become a line of the table, not a traceback.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import platform
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

from .._version import __version__
from ..build_info import build_info, covers, driver_runs

WIDTH = 100
AGAIN = (
    "install again: pip install --no-build-isolation --no-deps -e . (after make: make clean first)"
)
NOTHING = "nothing to do"
CUDA_SUCCESS, CUDA_ERROR_NO_DEVICE = 0, 100
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass
class Row:
    """One line of the table; ``todo`` is empty where nothing needs doing."""

    what: str
    ok: bool
    detail: str = ""
    todo: str = ""


@dataclass
class Gpu:
    name: str
    capability: tuple[int, int]
    memory: int  # bytes


def driver_version() -> int:
    """Return the CUDA version of the installed driver as 1000 * major + 10 * minor, or 0 without a driver."""
    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value


def gpus() -> tuple[list[Gpu], str]:
    """Return the visible GPUs and why there is none; asks the driver itself, since torch may be a CPU build."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return [], "no NVIDIA driver: libcuda.so.1 is not found"
    status = cuda.cuInit(0)
    count = ctypes.c_int(0)
    if status == CUDA_SUCCESS:
        status = cuda.cuDeviceGetCount(ctypes.byref(count))
    if status == CUDA_ERROR_NO_DEVICE or (status == CUDA_SUCCESS and count.value == 0):
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return [], "no GPU" + (f" (CUDA_VISIBLE_DEVICES={hidden!r})" if hidden is not None else "")
    if status != CUDA_SUCCESS:
        return [], f"the driver answers with CUDA error {status}"
    found = []
    for device in range(count.value):
        name = ctypes.create_string_buffer(128)
        major, minor, memory = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_size_t(0)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        found.append(Gpu(name.value.decode(), (major.value, minor.value), memory.value))
    return found, ""


def rows() -> Iterator[Row]:
    """Yield every line of the table, cheapest first."""
    info = build_info()
    yield Row("Python", True, f"{platform.python_version()}, {platform.system()}")
    yield _library("torch", "pip install 'torch>=2.8'")
    yield _library("triton", "pip install triton (Linux)")
    yield _compiler(info)
    yield _nvcc(info)
    yield from (_native(name, info) for name in ("_cpu", "_cuda"))
    yield _tensor_reading()
    yield _fewer_bits()
    yield from _device_rows(info)
    yield from _backend_rows()


def _library(name: str, todo: str) -> Row:
    module = _try_import(name)
    if isinstance(module, Exception):
        return Row(name, False, _one_line(module), todo)
    detail = str(getattr(module, "__version__", "?"))
    if name == "torch":
        cuda = module.version.cuda
        detail += f", CUDA {cuda}" if cuda else ", built without CUDA"
        if tuple(map(int, re.findall(r"\d+", detail)[:2])) < (2, 8):
            return Row(name, False, f"{detail}: too old", todo)
    return Row(name, True, detail)


def _compiler(info: dict[str, Any]) -> Row:
    wanted = os.environ.get("CXX")
    for program in [wanted] if wanted else ["g++", "c++", "clang++"]:
        line = _first_line(program, "--version")
        if line:
            return Row("C++ compiler", True, line)
    built = info.get("compiler")
    missing = f"{wanted or 'g++, c++, clang++'}: not on PATH"
    if built:
        return Row("C++ compiler", False, f"{missing} (the build had {built})")
    return Row("C++ compiler", False, missing, f"install g++ or clang++ and {AGAIN}")


def _nvcc(info: dict[str, Any]) -> Row:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    for program in [f"{home}/bin/nvcc"] * bool(home) + ["nvcc", "/usr/local/cuda/bin/nvcc"]:
        line = _first_line(program, "--version", containing="release")
        if line:
            return Row("nvcc", True, line)
    if info.get("nvcc"):
        return Row("nvcc", False, f"not found (the build had {info['nvcc']})")
    todo = f"only for the cuda backend: install the CUDA toolkit or set CUDA_HOME, and {AGAIN}"
    return Row("nvcc", False, "not on PATH, in CUDA_HOME or /usr/local/cuda", todo)


def _native(name: str, info: dict[str, Any]) -> Row:
    module = _try_import(f"stackelberg_fused.{name}")
    if not isinstance(module, Exception):
        if name == "_cpu":
            return Row(name, True, f"built with {info.get('compiler', 'an unknown compiler')}")
        cudart = _dotted(int(info.get("cudart", 0)))
        return Row(name, True, f"{' '.join(info.get('archs', []))}, cudart {cudart} (static)")
    reason = info.get("modules", {}).get(name, {}).get("reason")
    if not info:
        reason = "the package is not installed, only on the path"
    return Row(name, False, reason or _one_line(module), AGAIN)


def _device_rows(info: dict[str, Any]) -> Iterator[Row]:
    found, why_none = gpus()
    archs = info.get("archs", [])
    if not found:
        yield Row("GPU", False, why_none, f"{NOTHING}, unless this machine should have one")
    for gpu in found:
        major, minor = gpu.capability
        detail = f"{gpu.name}, sm_{major}{minor}, {gpu.memory / 2**30:.0f} GiB"
        if archs and not covers(archs, gpu.capability):
            todo = f'STACKELBERG_CUDA_ARCHS="{major}{minor}" and {AGAIN}'
            yield Row("GPU", False, f"{detail}: _cuda holds no code for it", todo)
        else:
            yield Row("GPU", True, detail)
    driver, cudart = driver_version(), int(info.get("cudart", 0))
    if not driver:
        return  # the row of the GPU said so
    if driver_runs(cudart, driver):
        yield Row("driver", True, f"CUDA {_dotted(driver)}; the build needs {_dotted(cudart)}")
    else:
        detail = f"CUDA {_dotted(driver)}, too old for the build's cudart {_dotted(cudart)}"
        todo = "update the driver, or build with an older toolkit; until then auto takes triton"
        yield Row("driver", False, detail, todo)


def _backend_rows() -> Iterator[Row]:
    try:
        package = importlib.import_module("stackelberg_fused")
        for status in package.backends():
            # a reason already says why not and what to do
            yield Row(f"backend {status.name}", status.available, status.reason)
    except Exception as error:  # whatever is broken, the table above it must still be printed
        yield Row("backends", False, _one_line(error), "see the lines above")


def _tensor_reading() -> Row:
    """Say how tensors are read; of an unknown torch this finds out and remembers it."""
    what = "tensor reading"
    try:
        module = importlib.import_module("stackelberg_fused.native.tensor_abi")
        found = module.reading(again=True)
    except Exception as error:
        return Row(what, False, _one_line(error), "see the lines above")
    if found.abi is not None:
        return Row(what, True, f"natively: {found.reason}")
    todo = f"{NOTHING}: results are the same, but a step takes the host more time per parameter"
    if found.reason.startswith(module.SWITCH):
        todo = f"unset {module.SWITCH}: results are the same, but a step takes the host less time per parameter"
    return Row(what, False, f"by Python: {found.reason}", todo)


def _fewer_bits() -> Row:
    """Say which path of the cpu backend a parameter of fewer bits takes: make a step of one, and read the counts."""
    what = "fewer bits"
    try:
        torch = importlib.import_module("torch")
        package = importlib.import_module("stackelberg_fused")
        cpu = importlib.import_module("stackelberg_fused.backends.cpu")
        param = torch.nn.Parameter(torch.ones(32, 32, dtype=torch.bfloat16))
        param.grad = torch.ones_like(param)
        options = {"master": "split8", "state_dtype": "8bit", "backend": "cpu"}
        optimizer = package.StackelbergAdamW([param], **options)
        before = cpu.updated_elements()
        optimizer.step()
        took_vectors = cpu.updated_elements()["vectors"] > before["vectors"]
        isa = importlib.import_module("stackelberg_fused._cpu").isa()
    except Exception as error:
        return Row(what, False, _one_line(error), "see the lines above")
    if took_vectors:
        return Row(what, True, f"the cpu backend takes vectors ({isa})")
    todo = f"{NOTHING}: results are the same, but Adam's steps with 16-bit parameters or fewer bits of state are slower"
    return Row(what, False, f"the cpu backend has vectors for AVX-512, and takes {isa} here", todo)


def _try_import(name: str) -> ModuleType | Exception:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a shared library that does not load raises more than ImportError
        return error


def _first_line(program: str, *arguments: str, containing: str = "") -> str:
    """Return the first line of a program's output that contains a word; empty if the program is not there."""
    if not shutil.which(program.split()[0]):
        return ""
    command = [*program.split(), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next((line for line in done.stdout.splitlines() if containing in line), "")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _dotted(version: int) -> str:
    return f"{version // 1000}.{version % 1000 // 10}" if version else "none"


def render(table: list[Row]) -> str:
    """Return the table as plain text, at most ``WIDTH`` columns, with a conclusion."""
    names = max(len(row.what) for row in table)
    lines = [f"stackelberg_fused {__version__}", ""]
    for row in table:
        margin = " " * (names + 7)
        head = f"{row.what:<{names}}  {'yes' if row.ok else 'no':<3}  "
        text = textwrap.fill(row.detail, WIDTH, initial_indent=head, subsequent_indent=margin)
        lines.append(text or head.rstrip())
        if row.todo:
            first, rest = f"{margin}-> ", f"{margin}   "
            lines.append(
                textwrap.fill(row.todo, WIDTH, initial_indent=first, subsequent_indent=rest)
            )
    return "\n".join([*lines, "", textwrap.fill(conclusion(table), WIDTH)])


def conclusion(table: list[Row]) -> str:
    """Return in a sentence or two what runs here, and whether something is left to do."""
    prefix = "backend "
    usable = [
        row.what.removeprefix(prefix) for row in table if row.ok and row.what.startswith(prefix)
    ]
    if not usable:
        return "No optimizer runs here yet: do what the lines with -> say, from the top."
    on_cpu = "cpu" if "cpu" in usable else "reference"
    takes = f'backend="auto" takes {on_cpu} for parameters on the CPU'
    on_gpu = [name for name in ("cuda", "triton") if name in usable]
    if on_gpu and any(row.ok for row in table if row.what == "GPU"):
        takes += f", {on_gpu[0]} for parameters on the GPU"
    open_rows = [row.what for row in table if row.todo and not row.todo.startswith(NOTHING)]
    left = f"; the lines with -> say what to do about: {', '.join(open_rows)}" if open_rows else ""
    return f"Optimizers run here: {takes}{left}."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the table as JSON")


def run(args: argparse.Namespace) -> int:
    """Print the table and return 0: a missing part is a finding, not a failure."""
    table = list(rows())
    if args.json:
        report = {
            "version": __version__,
            "build": build_info(),
            "rows": [asdict(row) for row in table],
            "conclusion": conclusion(table),
        }
        print(json.dumps(report, indent=2))
    else:
        print(render(table))
    return 0
