"""One row: the time of each contestant's step, and the verdicts on the targets."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch

from . import bandwidth, machine
from .contestant import Contestant, find_contestant
from .parity import reference_step
from .preparation import (
    SEED,
    SKIPPED,
    TIMED,
    MeasurementSettings,
    exclusion,
    gradient_sets,
    prepare,
)
from .separate_processes import SeparateProcesses
from .timing import (
    Action,
    interleave,
    median_ratio,
    quantiles,
    rounded,
)
from .workloads import TORCH_FUSED, UNSHARDED, Target, Workload

Samples = dict[str, list[float]]


def run_row(
    workload: Workload,
    contestants: list[Contestant],
    settings: MeasurementSettings,
    processes: SeparateProcesses | None = None,
) -> dict[str, Any]:
    """Measure one workload; `contestants` must include our reference.

    Returns the row of the JSON: `entries` with status, quantiles, every sample and ratios; `apart` with the
    times of torch's fused step and of ours in separate processes; the targets, met or missed.
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
    if workload.training_step:
        row["around"] = workload.training_step.description
    if workload.states:
        row["states"] = workload.states
    if workload.mesh:
        row["mesh"] = workload.mesh
    if settings.device == "cuda":
        # free the memory of earlier rows for the separate processes
        gc.collect()
        torch.cuda.empty_cache()
    if shortage := machine.memory_shortage(_bytes_needed(workload), settings.device):
        row["reason"] = shortage
        return row
    row["apart"] = {}
    if processes is not None:
        names = _timed_separately(workload, contestants, settings)
        row["apart"] = processes.measure(names, workload, settings)

    start = workload.start(settings.device, SEED)
    gradients = {
        dtype: gradient_sets(workload, settings.device, SEED, dtype)
        for dtype in dict.fromkeys((torch.float32, *(c.dtype for c in contestants)))
    }
    reference = find_contestant(contestants, "ours reference")
    expected = reference_step(reference, workload, start, gradients[reference.dtype][0])
    # allocated before the contestants, whose check of the free memory then sees the probes' share
    probes, row["stream_is"] = bandwidth.probes(workload.numel, settings.device)
    actions: dict[str, Action] = {}
    for contestant in contestants:
        sets = gradients[contestant.dtype]
        prepared, record = prepare(contestant, workload, settings, start, sets[0], expected)
        row["entries"].append(record)
        if prepared is not None:
            actions[contestant.name] = prepared.action(settings.device, *sets)
    del start, expected
    actions |= {name: Action(call, settings.device) for name, call in probes.items()}
    samples, row["load"] = machine.measure_when_quiet(
        lambda: interleave(actions, settings.rounds, settings.seconds, SEED), settings.patience
    )
    row["rounds"] = len(samples[bandwidth.COPY])
    _summarize(row, samples)
    row["targets"] = judge_targets(row, workload.targets)
    return row


def _bytes_needed(workload: Workload) -> int:
    # initial parameters and gradients (two sets if they change), the reference's p, m, v and gradient,
    # the probes, one contestant
    per_parameter = 16 + 16 + 24 + (8 if workload.new_gradients else 4)
    # gradients of their own and averages, the reference's and a contestant's
    return (per_parameter + (20 if workload.training_step else 0)) * workload.numel


def _timed_separately(
    workload: Workload, contestants: list[Contestant], settings: MeasurementSettings
) -> list[str]:
    """Return torch's fused step, our first contestant, and those that have a target against torch."""
    able = [c for c in contestants if not exclusion(c, workload, settings)]
    ours = next((c.name for c in able if c.family == "ours"), None)
    targeted = {t.contestant for t in workload.targets if t.quantity == TORCH_FUSED}
    return [c.name for c in able if c.name in {TORCH_FUSED, ours, *targeted}]


def times_torch_fused(samples: Samples, name: str) -> dict[str, float]:
    """Return how many times as fast as torch's fused step an action is; {} if that step was not timed."""
    if TORCH_FUSED not in samples:
        return {}
    ratio = median_ratio(samples[TORCH_FUSED], samples[name])
    return {"times_torch_fused": round(ratio, 4)}


def _summarize(row: dict[str, Any], samples: Samples) -> None:
    numel = row["parameters"]
    row["probes"] = {}
    for name in (bandwidth.COPY, bandwidth.STREAM):
        times = quantiles(samples[name])
        speed = bandwidth.bytes_moved(name, numel) / times["p50_ns"]
        row["probes"][name] = times | {
            "gb_per_s": round(speed, 3),
            "samples_ns": rounded(samples[name]),
        }
    for entry in row["entries"]:
        name = entry["name"]
        if name not in samples:
            continue
        entry |= quantiles(samples[name])
        moved = entry["bytes_per_parameter"] * numel
        entry["gb_per_s"] = round(moved / entry["p50_ns"], 3)
        for probe, key in ((bandwidth.COPY, "copy"), (bandwidth.STREAM, "stream")):
            # bandwidth relative to the probe's, within each round
            time_ratio = median_ratio(samples[probe], samples[name])
            share = time_ratio * moved / bandwidth.bytes_moved(probe, numel)
            entry[f"share_of_{key}"] = round(share, 4)
        entry |= times_torch_fused(samples, name)
        if UNSHARDED in samples:
            entry["times_unsharded"] = round(median_ratio(samples[name], samples[UNSHARDED]), 4)
        entry["samples_ns"] = rounded(samples[name])


def judge_targets(row: dict[str, Any], targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Return the records of the targets that hold for the row's device, with value and verdict.

    A target is about the first of ours that can run here, unless it names another. Against torch, the lower
    of two ratios counts: both timed interleaved, and both in separate processes. "met" is None where the
    machine was not quiet or nothing was measured.
    """
    able = [e for e in row["entries"] if e["family"] == "ours" and e["status"] != SKIPPED]
    quiet = all(
        load["quiet"]
        for load in (row["load"], *(a["load"] for a in row["apart"].values() if "load" in a))
    )
    records = []
    for target in targets:
        if target.device not in (None, row["device"]):
            continue
        record = asdict(target) | {"backend": None, "value": None, "met": None}
        records.append(record)
        entry = next((e for e in able if target.contestant in (None, e["name"])), None)
        if entry is None:
            continue
        record["backend"] = entry["name"]
        if entry["status"] != TIMED:
            continue
        record |= _values(target, entry, row["apart"])
        if record["value"] is not None and (quiet or target.is_counted):
            record["met"] = target.met_by(record["value"])
    return records


def _values(
    target: Target, entry: dict[str, Any], separate_times: dict[str, Any]
) -> dict[str, Any]:
    """Return the value of a target; against torch, also both ratios that it is the lower of."""
    if target.quantity == "launches":
        return {"value": entry.get("launches")}
    if target.quantity == "stored":
        return {"value": entry["stored_bytes_per_parameter"]}
    if target.quantity == UNSHARDED:
        return {"value": entry["times_unsharded"]}
    if target.quantity != TORCH_FUSED:
        return {"value": entry[f"share_of_{target.quantity}"]}
    interleaved = entry.get("times_torch_fused")
    ours, theirs = (separate_times.get(name, {}) for name in (entry["name"], TORCH_FUSED))
    if interleaved is None or "p50_ns" not in ours or "p50_ns" not in theirs:
        return {"value": interleaved}
    separate = round(theirs["p50_ns"] / ours["p50_ns"], 4)
    return {
        "value": min(interleaved, separate),
        "interleaved": interleaved,
        "apart": separate,
    }
