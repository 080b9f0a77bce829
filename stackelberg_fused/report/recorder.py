"""Writes what a run tells of its steps to a folder, one JSON line each; docs/report.md has the format."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from .environment import environment
from .events import Events
from .measured import kept, step_values
from .run_folder import FORMAT, SUFFIX

BY_NAME = ("rate", "grad_norm", "clip_factor")


class Recorder:
    """Context manager that records one training run, an *arm*, in a folder for `stackelberg report`.

    Arms that are to be compared share the folder, each with a recorder of its own, at the same time or one after the
    other, also in processes of their own. Numbers on a GPU stay there, and are read together when lines are written:
    after `flush_every` steps, at an evaluation and at the end. Of several ranks let one record.

    Args:
        folder: of the run; it is made if there is none.
        arm: the arm's name. A file of the same name is replaced.
        title: of the page.
        steps: how many the run is to make, so that the page can tell whether it was interrupted.
        settings: what the page lists or compares: rates, seed, model, data; anything that JSON can hold.
        resume: go on with the file. A step that comes again replaces all that was recorded from it on.
        every: record every n-th step.
        flush_every: steps between two writes.
        logdir: TensorBoard's. The same numbers are written to event files in a folder of the arm's in there, at the
            same times; needs the package tensorboard.

    Raises:
        ValueError: another arm has the same file; `every`, `flush_every` or `steps` is below 1.
        OSError: the file cannot be written.
        ModuleNotFoundError: `logdir` is given and tensorboard is not installed; nothing is written then.

    Example:
        >>> import tempfile
        >>> weight = nn.Parameter(torch.ones(3))
        >>> opt = sf.StackelbergAdamW([weight], lr=0.1)
        >>> with sf.Recorder(tempfile.mkdtemp(), title="mine") as recorder:
        ...     for step in range(1, 4):
        ...         loss = weight.square().sum()
        ...         loss.backward()
        ...         opt.step()
        ...         recorder.step(step, loss, opt)  # before the gradients are cleared
        ...         opt.zero_grad()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        arm: str = "run",
        *,
        title: str = "",
        steps: int | None = None,
        settings: Mapping[str, Any] | None = None,
        resume: bool = False,
        every: int = 1,
        flush_every: int = 50,
        logdir: str | os.PathLike[str] | None = None,
    ) -> None:
        for name, value in (("steps", steps), ("every", every), ("flush_every", flush_every)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        self.path = Path(folder) / file_name(arm)
        self.steps, self.every, self.flush_every = steps, every, flush_every
        self._waiting: list[dict[str, Any]] = []
        self._times: list[float] = []  # of those that wait
        other = _arm_of(self.path)
        if other not in (None, arm):
            raise ValueError(f"{self.path} holds the arm {other!r}, {arm!r} needs another name")
        self._events = None if logdir is None else Events(Path(logdir) / arm_folder(arm), resume)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        broken = resume and _ends_within_a_line(self.path)
        self._file = self.path.open("a" if resume else "w", encoding="utf-8")
        if broken:
            self._file.write("\n")
        self._write(
            {
                "kind": "run",
                "format": FORMAT,
                "arm": arm,
                "title": title,
                "steps": steps,
                "started": datetime.now(timezone.utc).isoformat(),
                "command": shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]),
                "settings": dict(settings or {}),
                "environment": environment(),
            }
        )

    def step(self, step: int, loss: Any, optimizer: Any = None, **values: Any) -> None:
        """Record a training step; call it after `optimizer.step()` and before gradients are cleared.

        Args:
            step: its number, from 1.
            loss: a number, or a tensor of one element.
            optimizer: of this library or of torch. Recorded are rates by group, norms of gradients by role, and
                clip factors. Norms are those of `opt.last_step` where `max_grad_norm` is set (infinity only measures),
                else they are taken from `.grad`: so `max_grad_norm` is needed with `step(zero_grad=True)`,
                `release="backward"` and `sf.GradScaler`.
            **values: other numbers, each a chart of its own. `rate`, `grad_norm` and `clip_factor`, numbers or dicts of
                them, replace what the optimizer tells.

        Raises:
            TypeError, ValueError: something is no number, or a value is called `kind`.
        """
        if step % self.every and step != self.steps:
            return
        row: dict[str, Any] = {"kind": "step", "step": int(step), "loss": kept(loss)}
        if optimizer is not None:
            row.update(step_values(optimizer))
        _refuse_kind(values)
        for name, value in values.items():
            row[name] = _named(value) if name in BY_NAME else kept(value)
        self._wait(row)
        if len(self._waiting) >= self.flush_every:
            self.flush()

    def evaluation(self, step: int, loss: Any = None, **values: Any) -> None:
        """Record an evaluation after a step, 0 for the start, and write everything recorded so far.

        Args:
            step: the number of the last step.
            loss: the validation loss.
            **values: other numbers, e.g. `accuracy`, and `follower_gap` (`sf.stackelberg_value`).

        Several evaluations after the same step are one, with the values of all.

        Raises:
            TypeError, ValueError: something is no number, or a value is called `kind`.
        """
        _refuse_kind(values)
        row: dict[str, Any] = {"kind": "evaluation", "step": int(step)}
        given = {**values} if loss is None else {"loss": loss, **values}
        self._wait({**row, **{name: kept(value) for name, value in given.items()}})
        self.flush()

    def flush(self) -> None:
        """Write what is recorded; reads numbers from the device, once for all of them."""
        rows, self._waiting = self._waiting, []
        times, self._times = self._times, []
        numbers = _read(rows)
        rows = [_replaced(row, numbers) for row in rows]
        self._write(*rows)
        if self._events:
            for row, at in zip(rows, times, strict=True):
                self._events.add(row, at)
            self._events.flush()

    def close(self, finished: bool = True) -> None:
        """Write the rest and end the file; a recorder that is closed stays so.

        Args:
            finished: whether the run came to its end.
        """
        if self._file.closed:
            return
        try:
            self.flush()
            self._write({"kind": "end", "finished": finished})
        finally:
            if self._events:
                self._events.close()
            with suppress(OSError):  # of what could not be written a moment ago
                self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(finished=kind is None)

    def _wait(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)
        self._times.append(time.time())

    def _write(self, *rows: dict[str, Any]) -> None:
        lines = [json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) for row in rows]
        try:
            self._file.writelines(f"{line}\n" for line in lines)
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, f"{self.path} could not be written: {error}") from error


def file_name(arm: str) -> str:
    """Return the name of an arm's file."""
    return arm_folder(arm) + SUFFIX


def arm_folder(arm: str) -> str:
    """Return the name of the folder in which TensorBoard finds an arm: its name without what files cannot be called."""
    return re.sub(r"[^\w.-]+", "-", arm).strip("-.") or "run"


def _ends_within_a_line(path: Path) -> bool:
    """Tell whether a file ends so: its process was killed while it wrote."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _arm_of(path: Path) -> str | None:
    """The arm whose file is there; None if there is none, or it begins with something else."""
    try:
        with path.open(encoding="utf-8") as file:
            return str(json.loads(file.readline())["arm"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_kind(values: Mapping[str, Any]) -> None:
    if "kind" in values:
        raise ValueError("a value cannot be called 'kind': each line has one of its own")


def _named(value: Any) -> dict[str, Any]:
    named = value if isinstance(value, Mapping) else {"total": value}
    return {str(name): kept(number) for name, number in named.items()}


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [tensor for inner in value.values() for tensor in _tensors(inner)]
    return [value] if isinstance(value, Tensor) else []


def _read(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return the numbers of all tensors of rows by their id; waits once for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for row in rows:
        for tensor in _tensors(row):
            by_device.setdefault(tensor.device, []).append(tensor)
    numbers = {}
    for device, tensors in by_device.items():
        dtype = torch.float32 if device.type == "mps" else torch.float64
        values = torch.stack([tensor.reshape(()).to(dtype) for tensor in tensors]).tolist()
        numbers.update({id(t): value for t, value in zip(tensors, values, strict=True)})
    return numbers


def _replaced(value: Any, numbers: dict[int, float]) -> Any:
    if isinstance(value, dict):
        return {name: _replaced(inner, numbers) for name, inner in value.items()}
    return numbers[id(value)] if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite, and everything unknown, as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if getattr(value, "size", None) == 1 or getattr(value, "ndim", None) == 0:  # NumPy's, torch's
        return _plain(value.item())
    return str(value)
