"""The report of a run: its tables, at most 120 columns wide, and the JSON."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import bandwidth, host, thread_contention
from .formatting import duration, load_summary, verdict
from .preparation import SKIPPED, TIMED
from .workloads import UNSHARDED

WIDTH = 118
Cells = tuple[str, ...]
Columns = tuple[tuple[str, int], ...]
COLUMNS: Columns = (
    ("", 26),
    ("median", 11),
    ("p20 .. p80", 21),
    ("x torch fused", 14),
    ("B/param", 9),
    ("GB/s", 8),
    ("of copy", 9),
    ("of stream", 10),
    ("launches", 9),
)
# for longer names, and with memory beside time
LOW_PRECISION_COLUMNS: Columns = (
    ("", 32),
    ("median", 9),
    ("p20 .. p80", 19),
    ("x torch fused", 14),
    ("moved", 8),
    ("stored", 8),
    ("GB/s", 8),
    ("of stream", 10),
    ("launches", 9),
)


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _optional(entry: dict[str, Any], key: str, template: str) -> str:
    return template.format(entry[key]) if key in entry else ""


def _cells(entry: dict[str, Any], columns: Columns) -> Cells:
    ratio = entry.get("times_torch_fused")
    moved = _optional(entry, "bytes_per_parameter", "{:g}")
    cells = {
        "": entry["name"],
        "median": duration(entry["p50_ns"]),
        "p20 .. p80": f"{duration(entry['p20_ns'])} .. {duration(entry['p80_ns'])}",
        "x torch fused": "" if ratio is None else f"{ratio:.2f}",
        "B/param": moved,
        "moved": moved,
        "stored": _optional(entry, "stored_bytes_per_parameter", "{:.2f}"),
        "GB/s": _optional(entry, "gb_per_s", "{:.1f}"),
        "of copy": _share(entry.get("share_of_copy")),
        "of stream": _share(entry.get("share_of_stream")),
        # where a profiler has counted, all launches
        "launches": str(entry.get("kernels") or entry.get("launches") or ""),
    }
    return tuple(cells[name] for name, _ in columns)


def _line(cells: Cells, columns: Columns) -> str:
    first, *rest = cells
    padded = [f"{first:<{columns[0][1]}}"]
    padded += [f"{cell:>{width}}" for cell, (_, width) in zip(rest, columns[1:], strict=True)]
    return "  " + "".join(padded).rstrip()


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _target_line(target: dict[str, Any], separate_times: dict[str, Any]) -> str:
    bound, value = target["bound"], target["value"]
    quantity, sign, template = {
        "torch fused": ("times torch fused", ">=", "{:.2f}"),
        "copy": ("of the copy's bandwidth", ">=", "{:.1%}"),
        "stream": ("of the bare stream's bandwidth", ">=", "{:.1%}"),
        "launches": ("launches per step", "<=", "{:.0f}"),
        "stored": ("bytes stored per parameter", "<=", "{:.2f}"),
        UNSHARDED: ("times ours without shards", "<=", "{:.2f}"),
    }[target["quantity"]]
    text = f"target {sign} {template.format(bound)} {quantity}: "
    if value is None:
        return text + "not measured"
    text += f"{template.format(value)} by {target['backend']}, {verdict(target['met'])}"
    if target["quantity"] != "torch fused":
        return text
    if "apart" in target:
        return text + f" ({target['interleaved']:.2f} interleaved, {target['apart']:.2f} apart)"
    if not separate_times:
        return text
    reasons = [times["reason"] for times in separate_times.values() if "reason" in times]
    return text + f" (interleaved only: {next(iter(reasons), 'no second figure')})"


def _step_row(row: dict[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield (
        f"  {row['tensors']} tensors, {row['parameters']:,} parameters, {row['groups']} groups,"
        f" gradients {row['gradients']}"
    )
    if "around" in row:
        yield f"  timed: {row['around']}"
    if "mesh" in row:
        yield f"  DTensors, as FSDP2 makes them, on a mesh {tuple(row['mesh'])} of this one process"
    columns = LOW_PRECISION_COLUMNS if "states" in row else COLUMNS
    if "states" in row:
        yield "  torch fused: parameters, gradients and states of float32"
        yield "  moved: bytes per parameter that a step has to move; stored: parameters and states, as allocated"
    yield _line(tuple(name for name, _ in columns), columns)
    for entry in row["entries"]:
        if entry["status"] == TIMED:
            yield _line(_cells(entry, columns), columns)
    for name, times in row["apart"].items():
        if "p50_ns" in times:
            noise = "" if times["load"]["quiet"] else " (!)"
            yield _line(_cells(times | {"name": f"{name}, apart{noise}"}, columns), columns)
    for name, probe in row["probes"].items():
        label = f"stream ({row['stream_is']})" if name == bandwidth.STREAM else name
        yield _line(_cells(probe | {"name": label}, columns), columns)
    if any("kernels" in entry for entry in row["entries"]):
        yield "  launches in the table: every kernel on the GPU; in the target: the optimizer's own"
    elif "GradScaler" in row.get("around", ""):
        yield "  launches: the optimizer's own; those of GradScaler come on top, on both sides"
    skipped = [e for e in row["entries"] if e["status"] == SKIPPED]
    for reason in dict.fromkeys(e["reason"] for e in skipped):
        names = ", ".join(e["name"] for e in skipped if e["reason"] == reason)
        yield from _wrapped(f"skipped ({reason}): {names}")
    for entry in row["entries"]:
        if entry["status"] not in (TIMED, SKIPPED):
            yield f"  NOT TIMED: {entry['name']}: {entry['status']}: {entry['reason']}"
    for target in row["targets"]:
        yield "  " + _target_line(target, row["apart"])
    for name, times in row["apart"].items():
        if "load" in times and not times["load"]["quiet"]:
            yield from _wrapped(f"(!) {name}, apart: {load_summary(times['load'])}")
    yield f"  {row['rounds']} rounds; {load_summary(row['load'])}"


def lines(row: dict[str, Any]) -> Iterator[str]:
    """Format one row of the JSON as text."""
    if "reason" in row:
        return iter((row["name"], f"  skipped: {row['reason']}"))
    by_name = {host.NAME: host.lines, thread_contention.NAME: thread_contention.lines}
    return by_name.get(row["name"], _step_row)(row)


def heading(result: dict[str, Any]) -> str:
    """Name machine and versions on one line; a second line says if no figure may be quoted."""
    hardware, versions = result["hardware"], result["versions"]
    return (
        f"{hardware.get('gpu') or hardware['cpu']}, {result['threads']} threads,"
        f" torch {versions['torch']},"
        f" stackelberg-fused {versions.get('stackelberg-fused', '?')},"
        f" commit {result['commit'][:10] or '?'}"
        + ("\n--quick: too few rounds for figures to be quoted" if result["quick"] else "")
    )


def write(result: dict[str, Any], path: Path) -> None:
    """Replace `path` in one step, so that an interrupted run leaves a complete file."""
    partial = path.with_suffix(".part")
    text = json.dumps(result, indent=1)
    # each list of samples goes on one line
    text = re.sub(r"\[[-\d.,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    partial.write_text(text + "\n")
    os.replace(partial, path)
