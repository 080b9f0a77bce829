"""What a recorder writes for TensorBoard: the rows of an arm as scalars in event files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

STRUCTURE = ("kind", "step")  # of a row
# of other rows' names; the callbacks of trainers call these the same
TAGS = {"rate": "lr", "grad_norm": "grad_norm", "clip_factor": "clip_factor"}
OF_THE_OPTIMIZER = ("skipped", "follower_gap")


class Events:
    """The scalars of one arm, in event files of a folder of its own.

    A step that comes again has TensorBoard drop all that was written from it on, as a new arm has it drop everything
    that an earlier one of the same name wrote. No file is removed.

    Args:
        folder: it is made if there is none.
        resume: keep what was written before the first step that comes.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
        OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self._writer_class = summary_writer()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._last = 0 if resume else -1  # step; below 0: nothing is kept
        self._writer: Any = None

    def add(self, row: Mapping[str, Any], at: float) -> None:
        """Write a row of numbers.

        Args:
            row: of `Recorder`: "kind" ("step" or "evaluation"), "step", and numbers by name.
            at: when it was recorded, in seconds as `time.time()` counts.
        """
        is_step = row["kind"] == "step"
        # an evaluation stands beside the step that was made before it
        begins = row["step"] + (not is_step)
        if self._writer is None or (is_step and begins <= self._last):
            self.close()
            purge_step = 0 if self._last < 0 else begins
            self._writer = self._writer_class(os.fspath(self.folder), purge_step=purge_step)
        self._last = max(row["step"], 0)
        for tag, number in scalars(row):
            self._writer.add_scalar(tag, number, row["step"], at)

    def flush(self) -> None:
        """Have everything in the file."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Write the rest and end the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield tag and number of all values of a row."""
    part = "train" if row["kind"] == "step" else "validation"
    for name, value in row.items():
        if name in STRUCTURE:
            continue
        if isinstance(value, Mapping):
            prefix = f"optimizer/{TAGS.get(name, name)}"
            yield from ((f"{prefix}/{inner}", float(number)) for inner, number in value.items())
        elif name == "loss":
            yield f"loss/{part}", float(value)
        elif name in OF_THE_OPTIMIZER:
            yield f"optimizer/{name}", float(value)
        else:
            yield f"{part}/{name}", float(value)


def summary_writer() -> Any:
    """Return torch's class that writes event files.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed, or is too old for torch.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            f"TensorBoard is needed, pip install tensorboard: {error}", name="tensorboard"
        ) from error
    return SummaryWriter
