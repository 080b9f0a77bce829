"""The machine: hardware, versions, commit, free memory, and the load by others during a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")
PACKAGES = (
    "torch",
    "triton",
    "stackelberg-fused",
    "flashoptim",
    "torch-optimi",
    "torchao",
    "bitsandbytes",
    "bitsandbytes-cpu-fork",
    "deepspeed",
)


def _first_value(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def cpu_model() -> str:
    """Return the processor's name as the kernel gives it."""
    return _first_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def hardware(device: str) -> dict[str, Any]:
    """Describe processor, memory and, for "cuda", the GPU."""
    description: dict[str, Any] = {
        "cpu": cpu_model(),
        "logical_cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(available_bytes("cpu", total=True) / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        description["gpu"] = properties.name
        description["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        description["gpu_driver"] = _command(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        description["cuda"] = torch.version.cuda
    return description


def versions() -> dict[str, str]:
    """Return the versions of Python and of every contestant's package that is installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _command(*arguments: str, folder: Path = Path(__file__).parent) -> str:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, cwd=folder)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit(folder: Path = Path(__file__).parent) -> str:
    """Return the checkout's commit, with "+changes" if tracked files differ; "" outside a checkout."""
    revision = _command("git", "rev-parse", "HEAD", folder=folder)
    status = ("git", "status", "--porcelain", "--untracked-files=no")
    changed = revision and _command(*status, folder=folder)
    return revision + ("+changes" if changed else "")


def provenance(device: str) -> dict[str, Any]:
    """Describe what produced a result: command, commit, hardware and versions."""
    return {
        "command": shlex.join(["python", "-m", "stackelberg_fused", *sys.argv[1:]]),
        "commit": commit(),
        "hardware": hardware(device),
        "versions": versions(),
    }


def available_bytes(device: str, total: bool = False) -> int:
    """Return the free memory, or the whole of it; without /proc, always all physical memory."""
    if device == "cuda":
        free, everything = torch.cuda.mem_get_info()
        # memory that torch's allocator has cached but nobody uses is as good as free
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return everything if total else free + cached
    kib = _first_value("/proc/meminfo", "MemTotal" if total else "MemAvailable").split()
    if kib:
        return int(kib[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_shortage(needed: int, device: str) -> str:
    """Return the reason why `needed` bytes do not fit into the free memory, or ""."""
    available = available_bytes(device)
    if needed <= 0.9 * available:
        return ""
    return f"needs {needed / 2**30:.1f} GiB, {available / 2**30:.1f} GiB available"


# if others use more than this share of the processors, threads wait for each other at every barrier
QUIET_SHARE = 0.1


@dataclass
class Load:
    """The share of the machine that others have used since construction."""

    def __post_init__(self) -> None:
        self._busy, self._stolen = self._machine()
        self._own, self._wall = self._process(), time.monotonic()

    @staticmethod
    def _machine() -> tuple[float, float]:
        """Return CPU seconds that were spent on this machine, and those that its host gave to others."""
        try:
            ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        except (OSError, ValueError):
            return 0.0, 0.0
        hertz = os.sysconf("SC_CLK_TCK")
        # user, nice, system, irq, softirq; then steal
        return (sum(ticks[0:3]) + sum(ticks[5:7])) / hertz, ticks[7] / hertz

    @staticmethod
    def _process() -> float:
        """Return CPU seconds of this process and of its children that have ended."""
        t = os.times()
        return t.user + t.system + t.children_user + t.children_system

    def others(self) -> dict[str, Any]:
        """Return how many CPUs other processes, and other guests of the host, used on average."""
        busy, stolen = self._machine()
        wall = max(time.monotonic() - self._wall, 1e-9)
        own = self._process() - self._own
        others = max(0.0, (busy - self._busy - own) / wall)
        lost = (stolen - self._stolen) / wall
        return {
            "other_processes_cpus": round(others, 2),
            "stolen_cpus": round(lost, 2),
            "quiet": others + lost <= QUIET_SHARE * (os.cpu_count() or 1),
        }


def measure_when_quiet(
    measure: Callable[[], Result], patience: float
) -> tuple[Result, dict[str, Any]]:
    """Repeat `measure()` until the machine was quiet meanwhile; return that result and the load.

    If the machine was never quiet within `patience` seconds, the last measurement counts.
    """
    end = time.monotonic() + patience
    while True:
        while time.monotonic() < end:
            load = Load()
            time.sleep(min(2.0, patience))
            if load.others()["quiet"]:
                break
        load = Load()
        result = measure()
        others = load.others()
        if others["quiet"] or time.monotonic() > end:
            return result, others
