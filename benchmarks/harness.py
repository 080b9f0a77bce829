"""One row: who can take part, is each right, how long does a step take."""

from __future__ import annotations

import contextlib
import gc
import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch

from . import bandwidth, machine
from .apart import Apart
from .parity import Expected, expect, parity_error
from .peers import TORCH_FUSED, Contestant, Step, TimeBoxExpired, time_box
from .timing import Action, interleave, median_ratio, quantiles, rounded
from .workloads import Workload

Tensors = list[torch.Tensor]
TIMED, SKIPPED, RED, BROKEN = "timed", "skipped", "parity red", "broke down"
# a compiled step may specialise again on its second call
WARM_UP_STEPS = 3
SEED = 1


@dataclass
class Settings:
    """How a run measures.

    `seconds` bounds the timed part of one row, `compile_seconds` one contestant's compilation, and
    `patience` the search for a moment in which others leave the machine alone.
    """

    device: str = "cpu"
    rounds: int = 60
    seconds: float = 20.0
    compile: bool = True
    compile_seconds: float = 60.0
    patience: float = 0.0


def first_line(error: Exception) -> str:
    """The error's kind and the first line of its message."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


@dataclass
class Entry:
    """A contestant's optimizer over its own copy of the parameters."""

    params: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    step: Step

    @classmethod
    def build(cls, contestant: Contestant, workload: Workload, start: Tensors) -> Entry:
        params = [torch.nn.Parameter(t.clone()) for t in start]
        return cls(params, *contestant.make(workload.param_groups(params)))

    def set_gradients(self, grads: Tensors) -> None:
        for p, g in zip(self.params, grads, strict=True):
            p.grad = g

    def action(self, device: str, *gradients: Tensors) -> Action:
        """Its step; with several sets of gradients, after every parameter has got the next one's.

        A gradient is then another object at another address each time, as after a backward pass.
        """
        self.set_gradients(gradients[0])
        action = Action(self.step, device)
        if len(gradients) > 1:
            sets = itertools.cycle(gradients)
            action.before = lambda: self.set_gradients(next(sets))
        return action


def gradient_sets(workload: Workload, device: str, seed: int) -> list[Tensors]:
    """One set of gradients, or two of the same values if the row wants new ones each step."""
    grads = workload.tensors(device, seed + 1, 0.1)
    return [grads, [g.clone() for g in grads]] if workload.new_gradients else [grads]


def _refused(contestant: Contestant, workload: Workload, settings: Settings) -> str:
    """Why `contestant` cannot take part, or nothing."""
    ok, reason = contestant.available(settings.device)
    if not ok:
        return reason
    if contestant.compiled and not settings.compile:
        return "--no-compile"
    if contestant.max_numel is not None and workload.numel > contestant.max_numel:
        return f"only up to {contestant.max_numel:,} parameters"
    # p, m, v of its own, and as much again for temporaries
    need, have = 24 * workload.numel, machine.available_bytes(settings.device)
    if need > 0.9 * have:
        return f"needs {need / 2**30:.1f} GiB, {have / 2**30:.1f} GiB available"
    return ""


def _enter(
    contestant: Contestant,
    workload: Workload,
    settings: Settings,
    start: Tensors,
    grads: Tensors,
    expected: Expected,
) -> tuple[Entry | None, dict[str, Any]]:
    """Build, check and warm up; (None, what went wrong) if any of it fails."""
    record: dict[str, Any] = {
        "name": contestant.name,
        "family": contestant.family,
        "bytes_per_parameter": contestant.bytes_per_parameter,
        "status": SKIPPED,
        "reason": _refused(contestant, workload, settings),
    }
    if record["reason"]:
        return None, record
    box = time_box(settings.compile_seconds) if contestant.compiled else contextlib.nullcontext()
    try:
        with box:
            entry = Entry.build(contestant, workload, start)
            entry.set_gradients(grads)
            entry.step()
            error = parity_error(contestant, entry.params, entry.optimizer, expected)
            if error:
                return None, record | {"status": RED, "reason": error}
            for _ in range(WARM_UP_STEPS - 1):
                entry.step()
        record["launches"] = launches(entry, settings.device)
    except TimeBoxExpired:
        record["reason"] = f"compilation took longer than {settings.compile_seconds:g} s"
        torch._dynamo.reset()
    # whatever a peer raises, the row goes on without it
    except Exception as error:
        record["reason"] = first_line(error)
        if contestant.family == "ours":
            record["status"] = BROKEN
    else:
        return entry, record | {"status": TIMED}
    return None, record


def launches(entry: Entry, device: str) -> int | None:
    """Kernel launches of one step: our own count, or a GPU profiler's; None where nobody counts."""
    before = getattr(entry.optimizer, "launches", None)
    if before is not None:
        entry.step()
        return entry.optimizer.launches - before
    if device != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    # a machine may forbid profiling; the contestant is timed all the same
    with contextlib.suppress(Exception):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            entry.step()
            torch.cuda.synchronize()
        on_device = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return sum(not e.name.startswith(("Memcpy", "Memset")) for e in on_device)
    return None


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
        "gradients": "new each step" if workload.new_gradients else "kept",
        "entries": [],
    }
    if settings.device == "cuda":
        # an earlier row's memory, or the process alone finds none
        gc.collect()
        torch.cuda.empty_cache()
    # start, gradients (twice if they change), the reference's step, the probes, one contestant
    need = (16 + 16 + 24 + (8 if workload.new_gradients else 4)) * workload.numel
    have = machine.available_bytes(settings.device)
    if need > 0.9 * have:
        row["reason"] = f"needs {need / 2**30:.1f} GiB, {have / 2**30:.1f} GiB available"
        return row
    able = [c for c in field if not _refused(c, workload, settings)]
    mine = next((c.name for c in able if c.family == "ours"), None)
    names = [c.name for c in able if c.name in (TORCH_FUSED, mine)]
    row["apart"] = apart.measure(names, workload, settings) if apart else {}

    start = workload.tensors(settings.device, SEED, 1.0)
    gradients = gradient_sets(workload, settings.device, SEED)
    reference = next(c for c in field if c.name == "ours reference")
    expected = expect(reference, workload, start, gradients[0])
    # before the contestants, so that what is left for them is known
    probes, row["stream_is"] = bandwidth.probes(workload.numel, settings.device)
    actions: dict[str, Action] = {}
    for contestant in field:
        entry, record = _enter(contestant, workload, settings, start, gradients[0], expected)
        row["entries"].append(record)
        if entry is not None:
            actions[contestant.name] = entry.action(settings.device, *gradients)
    del start, expected
    actions |= {name: Action(call, settings.device) for name, call in probes.items()}
    samples, row["load"] = machine.quietly(
        lambda: interleave(actions, settings.rounds, settings.seconds, SEED), settings.patience
    )
    row["rounds"] = len(samples[bandwidth.COPY])
    _summarise(row, samples)
    row["targets"] = _targets(row, workload)
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


def _targets(row: dict[str, Any], workload: Workload) -> list[dict[str, Any]]:
    """Each target with the value of the first of our backends that can run here.

    Against torch, both are timed interleaved and both apart, and the lower ratio counts; "met" is
    None where nothing can be said.
    """
    mine = next(
        (e for e in row["entries"] if e["family"] == "ours" and e["status"] != SKIPPED), None
    )
    found = []
    for target in workload.targets:
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
        else:
            value = mine[f"share_of_{target.quantity}"]
        record["value"] = value
        loads = [row["load"], *(a["load"] for a in row["apart"].values() if "load" in a)]
        if value is not None and all(load["quiet"] for load in loads):
            record["met"] = target.met_by(value)
    return found
