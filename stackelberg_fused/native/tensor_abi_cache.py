"""Files that remember verdicts on reading torch natively, and one process at a time that finds one out.

A verdict is read from the first of two folders that has it, and written to the first that can be written:

1. `$STACKELBERG_CACHE_DIR`, or else `stackelberg_fused` in the cache folder of the XDG base directory specification.
2. A folder of the user's own under the temporary one, where the first is read-only.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("stackelberg_fused")

CACHE_DIR = "STACKELBERG_CACHE_DIR"
RETRY_AFTER = 24 * 3600.0  # seconds for which a verdict that does not last is believed
_POLL = 0.05  # seconds between two looks at a lock


@dataclass(frozen=True)
class Verdict:
    """A finding about a torch.

    Attributes:
        works: it can be read natively.
        reason: in words, where it cannot.
        lasts: another child would come to the same end. One that does not last is believed for `RETRY_AFTER`.
    """

    works: bool
    reason: str = ""
    lasts: bool = True


def read(about: dict[str, Any]) -> Verdict | None:
    """Return what is remembered about a torch; None where nothing is, or not any more."""
    for folder in _folders():
        found = _read_file(folder / _name(about), about)
        if found is not None:
            return found
    return None


def write(about: dict[str, Any], found: Verdict) -> bool:
    """Remember a verdict where that is possible; return whether it was."""
    said = {"works": found.works, "reason": found.reason, "about": about}
    if not found.lasts:
        said["until"] = time.time() + RETRY_AFTER
    for folder in _folders():
        try:
            _write_file(_made(folder) / _name(about), json.dumps(said))
        except OSError as error:
            log.debug("the verdict on this torch is not remembered in %s: %s", folder, error)
        else:
            return True
    return False


@contextmanager
def one_at_a_time(about: dict[str, Any], limit: float) -> Iterator[bool]:
    """Let one process after the other find out about a torch.

    Yields whether it is this one's turn: False after `limit` seconds of waiting, or where no folder can be written.
    The system takes a lock back from a process that ends, however it does. Where locks do not exist, all have turns.
    """
    file = _open_lock(about)
    if file is None:
        yield False
        return
    try:
        yield _lock(file, time.monotonic() + limit)
    finally:
        os.close(file)  # which gives the lock back


def parse(text: str) -> dict[str, Any] | None:
    """Return what is known and about what; None for anything else."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("about"), dict):
        return None
    fits = isinstance(said.get("works"), bool) and isinstance(said.get("reason"), str)
    return said if fits else None


def _name(about: dict[str, Any]) -> str:
    digest = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return f"tensor-abi-{digest[:16]}.json"


def _folders() -> list[Path]:
    found = [_cache_folder(), _temporary_folder()]
    return [folder for folder in found if folder is not None]


def _cache_folder() -> Path | None:
    """Return the folder for the user's caches; None where the user has none."""
    named = os.environ.get(CACHE_DIR)
    if named:
        return Path(named)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # unset, or to be ignored
        base = Path(os.path.expanduser("~/.cache"))
    return base / "stackelberg_fused" if base.is_absolute() else None


def _temporary_folder() -> Path | None:
    """Return a folder that this user alone writes; None where another user could have put something there.

    A file in it can say that a torch is fit to be read natively, which ends the process where it is not.
    """
    if not hasattr(
        os, "getuid"
    ):  # Windows, whose temporary folder is the user's own like the other
        return None
    try:
        folder = Path(tempfile.gettempdir()) / f"stackelberg_fused-{os.getuid()}"
    except FileNotFoundError:
        return None
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return folder  # to be made
    except OSError:
        return None
    is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if is_mine and not found.st_mode & 0o022 else None


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _read_file(path: Path, about: dict[str, Any]) -> Verdict | None:
    try:
        said = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if said is None or said["about"] != about:
        return None
    until = said.get("until")
    if until is None:
        return Verdict(said["works"], said["reason"])
    # a clock that was set back must not make it last for ever
    is_fresh = isinstance(until, float) and 0 < until - time.time() <= RETRY_AFTER
    return Verdict(said["works"], said["reason"], lasts=False) if is_fresh else None


def _write_file(path: Path, text: str) -> None:
    """Write a whole file or none: others may read and write it at the same time."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".json")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def _open_lock(about: dict[str, Any]) -> int | None:
    """Open the lock file in the first folder that can be written."""
    for folder in _folders():
        path = folder / f"{_name(about)}.lock"
        try:
            return os.open(_made(folder) / path.name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            log.debug("no lock in %s: %s", folder, error)
    return None


def _lock(file: int, deadline: float) -> bool:
    if fcntl is None:
        return True
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        except OSError:  # a file system without locks
            return True
