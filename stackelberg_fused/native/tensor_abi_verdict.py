"""A verdict on reading an unknown torch natively: a child process finds out, and a file remembers.

The probe calls functions that may be others under the same names, so it may end its process. A child's end hurts
nobody: it has a time limit and no GPU, and is started only where it is known that another Python will start.

However many processes begin at once, one child is started for all: the others wait for its verdict. A child that does
not answer costs each of them no more than `TIME_LIMIT` together, and the next day's none (`tensor_abi_cache.py`).
Where nothing can be remembered no child is started at all: each process would start its own, at each start.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from . import tensor_abi_cache as cache
from .tensor_abi_cache import Verdict
from .tensor_abi_probe import open_abi

try:
    from .. import _cpu as native_module
except ImportError:
    native_module = None
_cpu: Any = native_module

log = logging.getLogger("stackelberg_fused")

TIME_LIMIT = (
    30.0  # seconds; a child imports torch in some five, from files that this process has just read
)
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


def verdict(library: str, again: bool = False) -> Verdict:
    """Return the verdict on the torch in this process, from the cache or else from a child process.

    Args:
        library: path of libtorch.
        again: ask a child in spite of a verdict that does not last.
    """
    about = subject(library)
    found = _remembered(about, again)
    if found is not None:
        return found
    why_not = _why_no_child()
    if why_not:
        return Verdict(False, f"no process could be started to try: {why_not}", lasts=False)
    with cache.one_at_a_time(about, TIME_LIMIT + 5) as is_my_turn:
        found = _remembered(about, again)  # another process may have found out meanwhile
        if found is not None:
            return found
        if not is_my_turn:
            return Verdict(
                False,
                "another process still tries, or no folder can be written to remember what is found: set "
                f"{cache.CACHE_DIR} to one that can",
                lasts=False,
            )
        found = _ask([sys.executable, "-c", _CHILD], about)
        cache.write(about, found)
        return found


def _remembered(about: dict[str, Any], again: bool) -> Verdict | None:
    found = cache.read(about)
    return None if found is not None and again and not found.lasts else found


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
    said = cache.parse(lines[-1].removeprefix(_MARK)) if lines else None
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
