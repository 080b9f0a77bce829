"""Stopping and going on: a checkpoint that is always whole, and signals that wait for a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

FORMAT = 1
SIGINT = signal.SIGINT


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used, with the reason."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `path` that then takes its place in one move.

    Whatever stops the process, a reader finds the old file or the new one, never half of one.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, lambda partial: torch.save({"format": FORMAT, **content}, partial))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain containers, so that no file can run code.

    Raises:
        CheckpointError: there is none, or it was not written by this demo.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        known = content["format"] == FORMAT
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise CheckpointError(f"{path} is not a checkpoint of this demo: {error}") from error
    if not known:
        raise CheckpointError(f"{path} has format {content['format']}, this version reads {FORMAT}")
    return content


class StopRequest:
    """What a signal asked for; looked at between steps, when the state is consistent."""

    signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        return 0 if self.signal is None else 128 + self.signal


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second one acts at once, as usual."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers
        return
    previous: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        restore()

    def restore() -> None:
        while previous:
            signal.signal(*previous.popitem())

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
