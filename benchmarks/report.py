"""The table, in 120 columns, and the JSON."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import bandwidth, host, pools
from .entries import SKIPPED, TIMED

WIDTH = 118
Cells = tuple[str, ...]
COLUMNS = (
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
HEADER: Cells = tuple(name for name, _ in COLUMNS)


def duration(ns: float) -> str:
    """Three significant digits with a unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns / size < 1000 else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"


def judged(met: bool | None) -> str:
    """A target's verdict; none is given where the machine was not quiet."""
    return {True: "met", False: "MISSED", None: "not judged: noise"}[met]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _cells(entry: dict[str, Any]) -> Cells:
    ratio, count = entry.get("times_torch_fused"), entry.get("launches")
    return (
        entry["name"],
        duration(entry["p50_ns"]),
        f"{duration(entry['p20_ns'])} .. {duration(entry['p80_ns'])}",
        "" if ratio is None else f"{ratio:.2f}",
        str(entry.get("bytes_per_parameter", "")),
        f"{entry['gb_per_s']:.1f}" if "gb_per_s" in entry else "",
        _share(entry.get("share_of_copy")),
        _share(entry.get("share_of_stream")),
        str(count or ""),
    )


def _line(cells: Cells) -> str:
    first, *rest = cells
    padded = [f"{first:<{COLUMNS[0][1]}}"]
    padded += [f"{cell:>{width}}" for cell, (_, width) in zip(rest, COLUMNS[1:], strict=True)]
    return "  " + "".join(padded).rstrip()


def _verdict(target: dict[str, Any], apart: dict[str, Any]) -> str:
    bound, value = target["bound"], target["value"]
    what, sign, form = {
        "torch fused": ("times torch fused", ">=", "{:.2f}"),
        "copy": ("of the copy's bandwidth", ">=", "{:.1%}"),
        "stream": ("of the bare stream's bandwidth", ">=", "{:.1%}"),
        "launches": ("launches per step", "<=", "{:.0f}"),
    }[target["quantity"]]
    text = f"target {sign} {form.format(bound)} {what}: "
    if value is None:
        return text + "not measured"
    text += f"{form.format(value)} by {target['backend']}, {judged(target['met'])}"
    if target["quantity"] != "torch fused":
        return text
    if "apart" in target:
        return text + f" ({target['interleaved']:.2f} interleaved, {target['apart']:.2f} apart)"
    reasons = [found["reason"] for found in apart.values() if "reason" in found]
    return text + f" (interleaved only: {next(iter(reasons), 'no second figure')})"


def _load_line(load: dict[str, float]) -> str:
    quiet = "" if load["quiet"] else "NOT QUIET, no figure to quote: "
    return (
        f"{quiet}meanwhile other processes used {load['other_processes_cpus']:.2f} CPUs,"
        f" other guests {load['stolen_cpus']:.2f}"
    )


def _step_row(row: dict[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield (
        f"  {row['tensors']} tensors, {row['parameters']:,} parameters, {row['groups']} groups,"
        f" gradients {row['gradients']}"
    )
    yield _line(HEADER)
    for entry in row["entries"]:
        if entry["status"] == TIMED:
            yield _line(_cells(entry))
    for name, found in row["apart"].items():
        if "p50_ns" in found:
            noise = "" if found["load"]["quiet"] else " (!)"
            yield _line(_cells(found | {"name": f"{name}, apart{noise}"}))
    for name, probe in row["probes"].items():
        label = f"stream ({row['stream_is']})" if name == bandwidth.STREAM else name
        yield _line(_cells(probe | {"name": label}))
    skipped = [e for e in row["entries"] if e["status"] == SKIPPED]
    for reason in dict.fromkeys(e["reason"] for e in skipped):
        names = ", ".join(e["name"] for e in skipped if e["reason"] == reason)
        yield from textwrap.wrap(
            f"skipped ({reason}): {names}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    for entry in row["entries"]:
        if entry["status"] not in (TIMED, SKIPPED):
            yield f"  NOT TIMED: {entry['name']}: {entry['status']}: {entry['reason']}"
    for target in row["targets"]:
        yield "  " + _verdict(target, row["apart"])
    for name, found in row["apart"].items():
        if "load" in found and not found["load"]["quiet"]:
            yield f"  (!) {name}, apart: {_load_line(found['load'])}"
    yield f"  {row['rounds']} rounds; {_load_line(row['load'])}"


def _host_row(row: dict[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield f"  {row['backend']}, parameters of 16 elements"
    yield (
        f"  {'parameters':>10}  {'gradients':<14}{'host, median':>14}{'p20 .. p80':>22}"
        f"{'allowed':>10}{'':>18}{'kernel':>10}{'torch fused, all':>18}"
    )
    for case in row["cases"]:
        yield (
            f"  {case['parameters']:>10}  {case['gradients']:<14}{duration(case['p50_ns']):>14}"
            f"{duration(case['p20_ns']) + ' .. ' + duration(case['p80_ns']):>22}"
            f"{case['allowed_us']:>7.0f} us{judged(case['met']):>18}"
            f"{duration(case['kernel_p50_ns']):>10}"
            f"{duration(case['torch_fused_whole_step']['p50_ns']):>18}"
        )
    slopes = ", ".join(
        f"gradients {key} {value:.3f} us (at most {host.PER_PARAMETER_US[key]})"
        for key, value in row["per_parameter_us"].items()
    )
    yield f"  each further parameter: {slopes}"
    busiest = max(row["cases"], key=lambda case: case["load"]["other_processes_cpus"])
    yield f"  at the worst, {_load_line(busiest['load'])}"


def _pools_row(row: dict[str, Any]) -> Iterator[str]:
    yield row["name"]
    yield f"  against a process that never imports us: at most {row['limit']}"
    yield f"  {'operator':<18}{'after our step':>16}{'without us':>14}{'ratio':>8}"
    for operator in row["operators"]:
        yield (
            f"  {operator['name']:<18}{duration(operator['after_ours']['p50_ns']):>16}"
            f"{duration(operator['without_us']['p50_ns']):>14}{operator['ratio']:>8.2f}"
            f"  {judged(operator['met'])}"
        )
    yield f"  {_load_line(row['load'])}"


def lines(row: dict[str, Any]) -> Iterator[str]:
    """One row of the JSON as text."""
    if "reason" in row:
        return iter((row["name"], f"  skipped: {row['reason']}"))
    writer = {host.NAME: _host_row, pools.NAME: _pools_row}.get(row["name"], _step_row)
    return writer(row)


def heading(result: dict[str, Any]) -> str:
    """What ran where, on one line, and a second if nothing here may be quoted."""
    hardware, versions = result["hardware"], result["versions"]
    return (
        f"{hardware.get('gpu') or hardware['cpu']}, {result['threads']} threads,"
        f" torch {versions['torch']},"
        f" stackelberg-fused {versions.get('stackelberg-fused', '?')},"
        f" commit {result['commit'][:10] or '?'}"
        + ("\n--quick: too few rounds for figures to be quoted" if result["quick"] else "")
    )


def write(result: dict[str, Any], path: Path) -> None:
    """Replace `path` at once, so that an interrupted run leaves the last whole file."""
    partial = path.with_suffix(".part")
    text = json.dumps(result, indent=1)
    # samples on one line each
    text = re.sub(r"\[[-\d.,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    partial.write_text(text + "\n")
    os.replace(partial, path)
