"""The file that keeps a search for rates, and how what has to stay the same is written into it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

BEGIN = b'{"op_code":'  # of each line of Optuna's journals


@contextmanager
def open_storage(path: str | Path | None, studies: tuple[str, ...]) -> Iterator[Any]:
    """Give Optuna's storage in a file, which no other process can open meanwhile, or in memory.

    Args:
        studies: the names of all that the file may hold.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: the path is no file of such studies.
        RuntimeError: another search has the file open.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("find_rates() needs Optuna: pip install optuna") from error
    if path is None:
        yield optuna.storages.InMemoryStorage()
        return
    from optuna.storages.journal import JournalFileBackend

    path = Path(path)
    if path.is_dir():
        raise ValueError(f"find_rates(): path={str(path)!r} is a folder, not a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _lock(file, path)
        _drop_unfinished_line(file, path)
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
        others = [s.study_name for s in storage.get_all_studies() if s.study_name not in studies]
        if others:
            raise ValueError(
                f"find_rates(): the file {str(path)!r} has another study of Optuna, {others[0]!r}"
            )
        yield storage


def _lock(file: BinaryIO, path: Path) -> None:
    """Lock the file until it is closed, or its process ends in any way."""
    if sys.platform == "win32":
        return  # there is no flock
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RuntimeError(f"find_rates(): another search has {str(path)!r} open") from error


def _drop_unfinished_line(file: BinaryIO, path: Path) -> None:
    """Cut off a line that was not written to its end; what Optuna would append to it would be lost.

    Raises:
        ValueError: the file is no journal.
    """
    file.seek(0)
    content = file.read()
    if content and not content.startswith(BEGIN):
        raise ValueError(f"find_rates(): the file {str(path)!r} is not one that keeps a search")
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)


def described_value(value: Any) -> str:
    """Return a text that is the same in another process, where `repr` may have an address."""
    if isinstance(value, functools.partial):
        arguments = [described_value(v) for v in (value.func, value.args, value.keywords)]
        return f"partial({', '.join(arguments)})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k!r}: {described_value(v)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(described_value, value))}]"
    named = value if hasattr(value, "__qualname__") else type(value)
    if named is value or callable(value) or repr(value) == object.__repr__(value):
        return f"{named.__module__}.{named.__qualname__}"
    return repr(value)
