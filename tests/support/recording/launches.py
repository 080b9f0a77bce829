"""The kernels of csrc/cuda as operations: what a launch reads and writes, and the launch itself, on the host."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from host_cuda.backend import library

from stackelberg_fused.native.tables import (
    GRADIENT_STATISTICS,
    GROUP,
    PROJECT_ARGS,
    RECORD,
    STATISTICS_ARGS,
    STEP_ARGS,
    TILE,
)

from .order import Bytes

if TYPE_CHECKING:
    from .runtime import RecordingRuntime

_PARAM = (4, 2, 2)  # bytes of a number, by the words of `Scheme.format`
_STATE = (4, 2, 1)
_STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
_COUNTS = ("steps", "ready", "waited", "arrived")
_OF_SETS = ("set_sums", "set_digits", "set_factors", "set_tiles_done")


def _array(address: int, dtype: np.dtype[Any], count: int) -> np.ndarray:
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return np.frombuffer(memory, dtype)


class Launches:
    """In the place of the extension module `_cuda`.

    Args:
        runtime: on whose streams the launches go.
    """

    def __init__(self, runtime: RecordingRuntime) -> None:
        self._runtime = runtime
        self.step = self._launch("step", STEP_ARGS, self._of_step)
        self.project = self._launch("project", PROJECT_ARGS, self._of_project)
        self.statistics = self._launch("statistics", STATISTICS_ARGS, self._of_statistics)
        self.conclude = self._launch("conclude", STATISTICS_ARGS, self._of_conclude)

    def _launch(
        self, name: str, layout: Mapping[str, str], accesses: Callable[..., Iterator[Bytes]]
    ) -> Callable[[bytes, int, int], None]:
        fields = struct.Struct("<" + "".join(layout.values()))

        def launch(packed: bytes, device: int, stream: int) -> None:
            values = list(fields.unpack(packed))
            if "max_norm" in layout:  # two numbers
                at = list(layout).index("max_norm")
                values[at : at + 2] = [values[at : at + 2]]
            args, act = dict(zip(layout, values, strict=True)), self._runtime.now()

            def run() -> None:
                library().sf_host_set_order(0, 0)
                error = getattr(library(), f"sf_host_{name}")(packed)
                assert not error, error

            on = self._runtime.streams[stream]
            self._runtime.enqueue(f"kernel {name}", run, lambda: [*accesses(args, act)], on)

        return launch

    def _whole(
        self, args: Mapping[str, int], act: int, writes: bool, *names: str
    ) -> Iterator[Bytes]:
        for name in names:
            yield from self._runtime.memory.whole(args[name], act, writes)

    def _records(
        self, args: Mapping[str, Any], act: int, of: str = "tiles", first: str = "first_tile"
    ) -> tuple[np.ndarray, np.ndarray]:
        """The slots of a range of tiles, ascending, and their records; none where what lies there is no table."""
        count = args[first] + args[f"num_{of}"]
        slots = np.unique(_array(args[of], TILE, count)["record"][args[first] :])
        room = sum(each.nbytes for each in self._runtime.memory.whole(args["records"], act, False))
        if len(slots) and not 0 <= slots[0] <= slots[-1] < room // RECORD.itemsize:
            self._runtime.report("a kernel reads tables that are none")
            slots = slots[:0]
        return slots, _array(args["records"], RECORD, int(slots.max(initial=-1)) + 1)[slots]

    def _of_step(self, args: Mapping[str, Any], act: int) -> Iterator[Bytes]:
        yield from self._whole(args, act, False, "records", "tiles", "rows", "groups", "sets")
        slots, records = self._records(args, act)
        if not len(slots):
            return
        if args["statistics"]:
            yield Bytes(args["statistics"], GRADIENT_STATISTICS.itemsize, False)
        for name in ("grad_scale", "found_inf"):
            yield Bytes(args[name], 4, False)
        if args["groups"]:
            yield from _counts(args, slots)
            rows = np.unique(records["row"])
            known = rows[(rows >= 0) & (rows < 100)]
            for group in _array(args["groups"], GROUP, int(known.max(initial=-1)) + 1)[known]:
                yield Bytes(int(group["lr_address"]), 8 if group["lr_is_double"] else 4, False)
        if args["sets"]:
            yield from self._whole(args, act, True, *_OF_SETS)
            yield Bytes(args["moved"] + 4 * int(slots[0]), 4 * int(np.ptp(slots) + 1), True)
        for record in records:
            yield from _of_record(record, bool(args["zero_grads"]))

    def _of_project(self, args: Mapping[str, Any], act: int) -> Iterator[Bytes]:
        yield from self._whole(args, act, False, "records", "rows", "sets", "pieces", "set_factors")
        slots, records = self._records(args, act, "pieces", "first_piece")
        if not len(slots):
            return
        yield Bytes(args["moved"] + 4 * int(slots[0]), 4 * int(np.ptp(slots) + 1), False)
        yield Bytes(args["found_inf"], 4, False)
        for record in records:
            for name in ("param", "ema"):
                yield Bytes(int(record[name]), 4 * int(record["numel"]), True)

    def _of_statistics(self, args: Mapping[str, Any], act: int) -> Iterator[Bytes]:
        yield from self._whole(args, act, False, "records", "tiles", "rows", "groups")
        yield from self._whole(args, act, True, "sums", "digits")
        yield Bytes(args["statistics"], GRADIENT_STATISTICS.itemsize, True)
        yield Bytes(args["grad_scale"], 4, False)
        yield Bytes(args["found_inf"], 4, True)
        slots, records = self._records(args, act)
        for record in records:
            yield _gradient(record, False)
            if args["takes_turns"]:
                yield Bytes(int(record["grad_sum"]), 4 * int(record["numel"]), False)
        if args["waited"] and len(slots):
            yield Bytes(args["waited"] + 4 * int(slots[0]), 4 * int(np.ptp(slots) + 1), False)

    def _of_conclude(self, args: Mapping[str, Any], act: int) -> Iterator[Bytes]:
        yield from self._whole(args, act, False, "digits")
        yield Bytes(args["statistics"], GRADIENT_STATISTICS.itemsize, True)
        yield Bytes(args["found_inf"], 4, True)


def _counts(args: Mapping[str, Any], slots: np.ndarray) -> Iterator[Bytes]:
    for name in _COUNTS:
        for run in np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1):
            yield Bytes(args[name] + 4 * int(run[0]), 4 * len(run), True)


def _gradient(record: Any, writes: bool) -> Bytes:
    width = _PARAM[int(record["grad_dtype"])]
    return Bytes(int(record["grad"]), width * int(record["numel"]), writes)


def _of_record(record: Any, zero_grads: bool) -> Iterator[Bytes]:
    numel, word = int(record["numel"]), int(record["format"])
    yield _gradient(record, zero_grads)
    yield Bytes(int(record["param"]), _PARAM[word & 3] * numel, True)
    for name in _STATES:
        yield Bytes(int(record[name]), _STATE[word >> 2 & 3] * numel, True)
    for name in ("ema", "grad_sum"):
        yield Bytes(int(record[name]), 4 * numel, True)
    for name in ("master", *(f"{state}_scale" for state in _STATES)):
        yield Bytes(int(record[name]), numel if name == "master" else 1, True)
