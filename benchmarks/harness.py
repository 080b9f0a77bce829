"""One row: how long everyone's step takes, and what that says of the targets."""

from __future__ import annotations

import gc
from dataclasses import asdict
from typing import Any

import torch

from . import bandwidth, machine
from .contestant import Contestant
from .parity import expect
from .preparation import (
    SEED,
    SKIPPED,
    TIMED,
    Settings,
    enter,
    gradient_sets,
    refused,
)
from .separate_processes import Apart
from .timing import (
    Action,
    interleave,
    median_ratio,
    quantiles,
    rounded,
)
from .workloads import TORCH_FUSED, Target, Workload


def run_row(
    workload: Workload,
    field: list[Contestant],
    settings: Settings,
    apart: Apart | None = None,
) -> dict[str, Any]:
    """Measure one workload; `field` lists the contestants, our reference among them.

    Returns the row as it goes into the JSON: entries with status, quantiles, every sample and
    ratios; what torch's fused step and ours take in processes of their own; the targets, met or
    missed.
    """
    row: dict[str, Any] = {
        "name": workload.name,
        "device": settings.device,
        "tensors": len(workload.shapes),
        "groups": workload.groups,
        "parameters": workload.numel,
        "gradients": workload.gradients,
        "entries": [],
    }
    if workload.around:
        row["around"] = workload.around.words
    if workload.states:
        row["states"] = workload.states
    if settings.device == "cuda":
        # an earlier row's memory, or the process alone finds none
        gc.collect()
        torch.cuda.empty_cache()
    # start, gradients (twice if they change), the reference's step, the probes, one contestant
    each = 16 + 16 + 24 + (8 if workload.new_gradients else 4)
    # gradients of their own and averages, the reference's and a contestant's
    need = (each + (20 if workload.around else 0)) * workload.numel
    have = machine.available_bytes(settings.device)
    if need > 0.9 * have:
        row["reason"] = f"needs {need / 2**30:.1f} GiB, {have / 2**30:.1f} GiB available"
        return row
    able = [c for c in field if not refused(c, workload, settings)]
    mine = next((c.name for c in able if c.family == "ours"), None)
    raced = {t.contestant for t in workload.targets if t.quantity == TORCH_FUSED}
    wanted = {TORCH_FUSED, mine, *raced}
    names = [c.name for c in able if c.name in wanted]
    row["apart"] = apart.measure(names, workload, settings) if apart else {}

    start = workload.start(settings.device, SEED)
    gradients = {
        dtype: gradient_sets(workload, settings.device, SEED, dtype)
        for dtype in dict.fromkeys((torch.float32, *(c.dtype for c in field)))
    }
    reference = next(c for c in field if c.name == "ours reference")
    expected = expect(reference, workload, start, gradients[reference.dtype][0])
    # before the contestants, so that what is left for them is known
    probes, row["stream_is"] = bandwidth.probes(workload.numel, settings.device)
    actions: dict[str, Action] = {}
    for contestant in field:
        own = gradients[contestant.dtype]
        entry, record = enter(contestant, workload, settings, start, own[0], expected)
        row["entries"].append(record)
        if entry is not None:
            actions[contestant.name] = entry.action(settings.device, *own)
    del start, expected
    actions |= {name: Action(call, settings.device) for name, call in probes.items()}
    samples, row["load"] = machine.quietly(
        lambda: interleave(actions, settings.rounds, settings.seconds, SEED), settings.patience
    )
    row["rounds"] = len(samples[bandwidth.COPY])
    _summarise(row, samples)
    row["targets"] = targets_of(row, workload.targets)
    return row


def _summarise(row: dict[str, Any], samples: dict[str, list[float]]) -> None:
    numel = row["parameters"]
    row["probes"] = {}
    for name in (bandwidth.COPY, bandwidth.STREAM):
        found = quantiles(samples[name])
        speed = bandwidth.bytes_moved(name, numel) / found["p50_ns"]
        row["probes"][name] = found | {
            "gb_per_s": round(speed, 3),
            "samples_ns": rounded(samples[name]),
        }
    for entry in row["entries"]:
        mine = samples.get(entry["name"])
        if mine is None:
            continue
        entry |= quantiles(mine)
        moved = entry["bytes_per_parameter"] * numel
        entry["gb_per_s"] = round(moved / entry["p50_ns"], 3)
        for probe, key in ((bandwidth.COPY, "copy"), (bandwidth.STREAM, "stream")):
            # bytes over time against the probe's, within each round
            share = median_ratio(samples[probe], mine) * moved / bandwidth.bytes_moved(probe, numel)
            entry[f"share_of_{key}"] = round(share, 4)
        if TORCH_FUSED in samples:
            entry["times_torch_fused"] = round(median_ratio(samples[TORCH_FUSED], mine), 4)
        entry["samples_ns"] = rounded(mine)


def targets_of(row: dict[str, Any], targets: tuple[Target, ...]) -> list[dict[str, Any]]:
    """Each target of the row's device with the value of the contestant that it is about.

    That is the first of ours that can run here, unless the target names another. Against torch, both
    are timed interleaved and both apart, and the lower ratio counts; "met" is None where nothing can
    be said.
    """
    able = [e for e in row["entries"] if e["family"] == "ours" and e["status"] != SKIPPED]
    found = []
    for target in targets:
        if target.device is not None and target.device != row["device"]:
            continue
        mine = next((e for e in able if target.contestant in (None, e["name"])), None)
        record = asdict(target) | {"backend": None, "value": None, "met": None}
        found.append(record)
        if mine is None:
            continue
        record["backend"] = mine["name"]
        if mine["status"] != TIMED:
            continue
        if target.quantity == TORCH_FUSED:
            value = mine.get("times_torch_fused")
            ours, torchs = (row["apart"].get(name, {}) for name in (mine["name"], TORCH_FUSED))
            if value is not None and "p50_ns" in ours and "p50_ns" in torchs:
                record["interleaved"] = value
                record["apart"] = round(torchs["p50_ns"] / ours["p50_ns"], 4)
                value = min(value, record["apart"])
        elif target.quantity == "launches":
            value = mine.get("launches")
        elif target.quantity == "stored":
            value = mine["stored_bytes_per_parameter"]
        else:
            value = mine[f"share_of_{target.quantity}"]
        record["value"] = value
        loads = [row["load"], *(a["load"] for a in row["apart"].values() if "load" in a)]
        certain = target.is_counted or all(load["quiet"] for load in loads)
        if value is not None and certain:
            record["met"] = target.met_by(value)
    return found
