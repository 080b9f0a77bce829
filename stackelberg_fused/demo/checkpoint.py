"""Stop and resume: checkpoints that are written atomically, and signals that wait for the end of a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from glob import escape
from pathlib import Path
from types import FrameType
from typing import Any

import torch

FORMAT = 1


class CheckpointError(RuntimeError):
    """Raised for a checkpoint that cannot be used; the message says why."""


class NotWrittenError(OSError):
    """Raised for a file that cannot be written, on a full disk for example; the message says what became of the old."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file through a temporary neighbour that replaces `path` in one move.

    If the process is stopped at any time, a reader finds the old file or the new one, never a part of one. What a
    process that was killed left of its neighbour is removed by the next one that writes the file.

    Args:
        path: the file.
        write: writes the content to the path it is given.

    Raises:
        NotWrittenError: names the file; the old one is as it was.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    for left in path.parent.glob(f"{escape(path.name)}.*.partial"):
        if not _is_being_written(left):
            left.unlink(missing_ok=True)
    try:
        write(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save raises either where the disk is full
        old = "the one that was there is as it was" if path.exists() else "there is none"
        raise NotWrittenError(f"{path} could not be written, {old}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _is_being_written(partial: Path) -> bool:
    """Tell whether the process in the name of a temporary file may still be there; this one writes no other."""
    number = partial.name.split(".")[-2]
    if not number.isdecimal():
        return True  # none of ours
    if int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)  # sends nothing
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True


def save(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint as `write_atomically` does."""
    write_atomically(path, lambda partial: torch.save({"format": FORMAT, **content}, partial))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint. Only tensors and plain containers are unpickled, so that no file can run code.

    Raises:
        CheckpointError: there is no file, or it is not a checkpoint of this demo and format.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        readable = content["format"] == FORMAT
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise CheckpointError(f"{path} is not a checkpoint of this demo: {error}") from error
    if not readable:
        raise CheckpointError(f"{path} has format {content['format']}, this version reads {FORMAT}")
    return content


class StopRequest:
    """Context manager in which the first SIGINT or SIGTERM is only recorded.

    The training loop reads it and stops between two steps, where the state is consistent. A second signal has its
    usual effect at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # only it may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self.__exit__()
