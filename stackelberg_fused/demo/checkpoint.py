"""Stopping and going on: a checkpoint that is always whole, and signals that wait for a step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

FORMAT = 1


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
    """Context in which the first SIGINT or SIGTERM only asks, and training stops between steps,
    where its state is consistent. A second one acts at once, as it does outside."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self.__exit__()
