"""What ran, where, and how quiet it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

Found = TypeVar("Found")
PACKAGES = (
    "torch",
    "triton",
    "stackelberg-fused",
    "flashoptim",
    "torch-optimi",
    "torchao",
    "bitsandbytes",
    "deepspeed",
)


def _first(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def cpu_model() -> str:
    """As the kernel names it."""
    return _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def hardware(device: str) -> dict[str, Any]:
    """Processor, memory and, for "cuda", the card."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "logical_cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(available_bytes("cpu", total=True) / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["gpu_driver"] = _command(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        found["cuda"] = torch.version.cuda
    return found


def versions() -> dict[str, str]:
    """Of Python and of every contestant that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _command(*arguments: str) -> str:
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def commit() -> str:
    """The checkout's commit, "+changes" when tracked files differ, "" outside a checkout."""
    revision = _command("git", "rev-parse", "HEAD")
    changed = revision and _command("git", "status", "--porcelain", "--untracked-files=no")
    return revision + ("+changes" if changed else "")


def available_bytes(device: str, total: bool = False) -> int:
    """Memory free now, or all there is; without /proc, all of the physical memory."""
    if device == "cuda":
        free, everything = torch.cuda.mem_get_info()
        # what torch's allocator holds but nobody uses is as good as free
        cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return everything if total else free + cached
    kib = _first("/proc/meminfo", "MemTotal" if total else "MemAvailable").split()
    if kib:
        return int(kib[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# above this share of the processors in other hands, threads wait for each other at every barrier
QUIET_SHARE = 0.1


@dataclass
class Load:
    """How much of the machine others used since construction."""

    def __post_init__(self) -> None:
        self._busy, self._stolen = self._machine()
        self._own, self._wall = self._process(), time.monotonic()

    @staticmethod
    def _machine() -> tuple[float, float]:
        try:
            ticks = [int(t) for t in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        except (OSError, ValueError):
            return 0.0, 0.0
        hertz = os.sysconf("SC_CLK_TCK")
        # user, nice, system, irq, softirq; then steal
        return (sum(ticks[0:3]) + sum(ticks[5:7])) / hertz, ticks[7] / hertz

    @staticmethod
    def _process() -> float:
        t = os.times()
        return t.user + t.system + t.children_user + t.children_system

    def others(self) -> dict[str, Any]:
        """CPUs kept busy by other processes, and by other guests of the host, on average."""
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


def quietly(measure: Callable[[], Found], patience: float) -> tuple[Found, dict[str, Any]]:
    """`measure()` and the load meanwhile, from the first time that the machine was quiet.

    Without a quiet moment within `patience` seconds, the last measurement counts.
    """
    end = time.monotonic() + patience
    while True:
        while time.monotonic() < end:
            load = Load()
            time.sleep(min(2.0, patience))
            if load.others()["quiet"]:
                break
        load = Load()
        found = measure()
        seen = load.others()
        if seen["quiet"] or time.monotonic() > end:
            return found, seen
