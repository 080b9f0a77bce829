"""A verdict on reading an unknown torch natively: a child process finds out, and a file remembers.

The probe calls functions that may be others under the same names, so it may end its process. A child's end hurts
nobody: it has a time limit and no GPU, and is started only where it is known that another Python will start.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from .tensor_abi_probe import open_abi

try:
    from .. import _cpu as native_module
except ImportError:
    native_module = None
_cpu: Any = native_module

log = logging.getLogger("stackelberg_fused")

TIME_LIMIT = 120.0  # seconds, of which importing torch from a cold disk is most
CACHE_DIR = "STACKELBERG_CACHE_DIR"
# what an unfit function ends in; other signals are somebody's wish
CRASHES = ("SIGSEGV", "SIGBUS", "SIGILL", "SIGABRT", "SIGFPE", "SIGTRAP", "SIGSYS")
_MARK = "stackelberg_fused's verdict: "
_CHILD = """
import sys
sys.path[:] = [folder for folder in sys.path if folder]  # not the current folder: it may hold a json.py
import json
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
except (ImportError, OSError, ValueError):
    pass
sys.path[:] = json.load(sys.stdin)
from stackelberg_fused.native.tensor_abi_verdict import answer
answer()
"""


@dataclass(frozen=True)
class Verdict:
    """What was found out about a torch.

    Attributes:
        works: it can be read natively.
        reason: in words, where it cannot.
        lasts: another child would come to the same end.
    """

    works: bool
    reason: str = ""
    lasts: bool = True


def subject(library: str) -> dict[str, Any]:
    """Return what a verdict is about: all that decides what a probe finds.

    Args:
        library: path of libtorch.
    """
    return {
        "torch": str(torch.__version__),
        "git": getattr(torch.version, "git_version", None),
        "stackelberg_fused": __version__,
        "python": sys.version,
        "files": [_fingerprint(library), _fingerprint(_cpu.__file__)],
    }


def verdict(library: str) -> Verdict:
    """Return the verdict on the torch in this process, from the cache or else from a child process.

    Args:
        library: path of libtorch.
    """
    about = subject(library)
    path = cache_path(about)
    found = _read(path, about)
    if found is not None:
        return found
    why_not = _why_no_child()
    if why_not:
        return Verdict(False, f"no process could be started to try: {why_not}", lasts=False)
    found = _ask([sys.executable, "-c", _CHILD], about)
    if found.lasts and path is not None:
        _write(path, about, found)
    return found


def cache_path(about: dict[str, Any]) -> Path | None:
    """Return the file that holds a verdict; None where the user has no folder for caches.

    The folder is `$STACKELBERG_CACHE_DIR`, or `stackelberg_fused` in that of the XDG base directory specification.
    """
    named = os.environ.get(CACHE_DIR)
    if named:
        folder = Path(named)
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # unset, or to be ignored
            base = Path(os.path.expanduser("~/.cache"))
        if not base.is_absolute():
            return None
        folder = base / "stackelberg_fused"
    digest = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return folder / f"tensor-abi-{digest[:16]}.json"


def answer(library: str = "") -> None:
    """Probe and print the verdict, in the child.

    Args:
        library: as of `open_abi`.
    """
    try:
        open_abi(library)
        works, reason = True, ""
    except Exception as error:
        works, reason = False, f"{type(error).__name__}: {error}"
    said = {"works": works, "reason": reason, "about": subject(_cpu.find_libtorch())}
    print(f"\n{_MARK}{json.dumps(said)}", flush=True)


def _fingerprint(file: str) -> list[Any]:
    try:
        found = os.stat(file)
    except OSError:
        return [file, 0, 0]
    return [file, found.st_size, found.st_mtime_ns]


def _why_no_child() -> str:
    """Return why no child may be started here; empty if it may."""
    if multiprocessing.parent_process() is not None:
        return "this is a child itself; `python -m stackelberg_fused doctor` tries and remembers"
    # an application that embeds Python would start a second time
    if getattr(sys, "frozen", False) or "python" not in Path(sys.executable or "").name.lower():
        return f"sys.executable is {sys.executable!r}, which is not known to be Python"
    return ""


def _ask(command: list[str], about: dict[str, Any], limit: float = TIME_LIMIT) -> Verdict:
    """Start a child and wait for its verdict."""
    quiet = {
        "STACKELBERG_TENSOR_ABI": "0",  # no child of its own, whatever it imports
        "CUDA_VISIBLE_DEVICES": "",
        "HIP_VISIBLE_DEVICES": "",
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **quiet},
            input=json.dumps([str(path) for path in sys.path]),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return Verdict(False, f"a child process did not answer in {limit:g} seconds", lasts=False)
    except (OSError, ValueError, RuntimeError) as error:  # the last when Python is about to end
        return Verdict(False, f"no child process could be started: {error}", lasts=False)
    log.debug("the child process wrote:\n%s%s", done.stdout, done.stderr)
    if done.returncode < 0:
        name = _signal_name(-done.returncode)
        return Verdict(False, f"a child process that tried died of {name}", name in CRASHES)
    lines = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    said = _parse(lines[-1].removeprefix(_MARK)) if lines else None
    if done.returncode or said is None:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        ended = f"a child process that tried ended with status {done.returncode}"
        return Verdict(False, f"{ended}: {last}", lasts=False)
    if said["about"] != about:
        return Verdict(False, "a child process found another torch, or other files", lasts=False)
    return Verdict(said["works"], said["reason"])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _parse(text: str) -> dict[str, Any] | None:
    """Return what is known and about what; None for anything else."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("about"), dict):
        return None
    fits = isinstance(said.get("works"), bool) and isinstance(said.get("reason"), str)
    return said if fits else None


def _read(path: Path | None, about: dict[str, Any]) -> Verdict | None:
    try:
        said = None if path is None else _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if said is None or said["about"] != about:
        return None
    return Verdict(said["works"], said["reason"])


def _write(path: Path, about: dict[str, Any], found: Verdict) -> None:
    """Write a whole file or none: others may read and write it at the same time."""
    said = {"works": found.works, "reason": found.reason, "about": about}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".json")
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(said, file)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
    except OSError as error:
        log.debug("the verdict on this torch is not remembered: %s", error)
