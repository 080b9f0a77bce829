"""`python -m stackelberg_fused verify`: check that every available backend is correct on this machine.

Each backend and the reference make steps from the same parameters, state and gradients. The largest difference must be
within `parity.ULP_BOUNDS`, or `parity.STEP_BOUNDS` for low-precision storage. All checked backends must give the same
bits as each other.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import Backend, BackendStatus, backends
from ..backends.cpu import CpuBackend, updated_elements
from ..cli import positive
from ..groups.constraints import L2Ball, Simplex
from ..groups.schemes import scheme_of
from ..layout.table import COUNTS
from ..optimizers.adam import StackelbergAdam, StackelbergAdamW
from ..optimizers.sgd import StackelbergSGD
from .parity import (
    STEP_BOUNDS,
    ULP_BOUNDS,
    steps_off,
    worst_ulps,
)

SIZES = (0, 1, 15, 16, 17, 63, 4095, 4096, 4097, 100_001)
STEPS = 4
_BFLOAT16: dict[str, Any] = {"dtype": torch.bfloat16, "float32_state": "none"}
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "Adam": (StackelbergAdam, {}),
    "Adam amsgrad L2": (StackelbergAdam, {"amsgrad": True, "weight_decay": 0.1}),
    "Adam maximize": (StackelbergAdam, {"maximize": True, "betas": (0.0, 0.9)}),
    "AdamW": (StackelbergAdamW, {}),
    "AdamW amsgrad": (StackelbergAdamW, {"amsgrad": True, "weight_decay": 0.1}),
    "AdamW cautious": (StackelbergAdamW, {"cautious": True, "weight_decay": 0.1}),
    "SGD": (StackelbergSGD, {"lr": 0.1}),
    "SGD momentum L2": (
        StackelbergSGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1},
    ),
    "SGD nesterov": (StackelbergSGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "mixed": (StackelbergAdamW, {"mixed": True}),
    "average, turns": (
        StackelbergAdamW,
        {"mixed": True, "ema_decay": 0.9, "update_every": {"body": 2}},
    ),
    "ball, simplex": (
        StackelbergAdamW,
        {
            "mixed": True,
            "ema_decay": 0.9,
            "constraint": {"body": L2Ball(30.0), "head": Simplex(5.0)},
        },
    ),
    "8 bits, split8": (
        StackelbergAdamW,
        {**_BFLOAT16, "master": "split8", "state_dtype": "8bit", "weight_decay": 0.1},
    ),
    "8 bits, stochastic": (
        StackelbergAdamW,
        {**_BFLOAT16, "mixed": True, "master": "stochastic", "state_dtype": "8bit"},
    ),
    "bfloat16, kahan": (
        StackelbergAdam,
        {**_BFLOAT16, "master": "kahan", "state_dtype": "bfloat16", "amsgrad": True},
    ),
    "bfloat16, split16": (StackelbergAdamW, {**_BFLOAT16, "master": "split16"}),
}
BOUNDS = {**ULP_BOUNDS, **STEP_BOUNDS}
WIDTH = 80
HEADING = """\
The largest difference from the reference in one step, and (its bound): of each
case the quantity that comes nearest to its bound. In ulp; of low-precision
storage in steps of the stored format."""


@dataclass
class Verdict:
    """The result of one backend in one case.

    Attributes:
        backend: the label of the backend.
        case: a key of `CASES`.
        worst: by quantity, the largest difference from the reference, in the units of `BOUNDS`.
        final: the parameters after the last step, on the CPU.
    """

    backend: str
    case: str
    worst: dict[str, float]
    final: list[Tensor]

    @property
    def passed(self) -> bool:
        return all(value <= BOUNDS[name] for name, value in self.worst.items())


def _parameters(device: torch.device, case: str) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    dtype = CASES[case][1].get("dtype", torch.float32)
    start = [torch.randn(n, generator=generator) for n in SIZES]
    return [torch.nn.Parameter(t.to(device, dtype)) for t in start]


def _build(
    case: str, params: list[torch.nn.Parameter], backend: str | Backend
) -> torch.optim.Optimizer:
    cls, options = CASES[case]
    options = {name: value for name, value in options.items() if name != "dtype"}
    head: dict[str, Any] = {"params": params[1::2], "role": "head"}
    if options.pop("mixed", False):
        head.update(rule="sgd", momentum=0.9)
    return cls([{"params": params[::2]}, head], backend=backend, **options)


def _snapshot(param: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    entry = optimizer.state[param]
    state = {k: v.detach().cpu().clone() for k, v in entry.items() if k not in COUNTS}
    return {"param": param.detach().cpu().clone(), **state}


def check(label: str, backend: str | Backend, device: torch.device, case: str) -> Verdict:
    """Run one case on one backend and on the reference. The reference starts each step from the bits of the backend.

    Args:
        label: the label of the backend in the output.
        backend: its name, or the backend itself.
        device: of the parameters.
        case: a key of `CASES`.
    """
    params, expected = _parameters(device, case), _parameters(torch.device("cpu"), case)
    optimizer = _build(case, params, backend)
    reference = _build(case, expected, "reference")
    generator = torch.Generator().manual_seed(2)
    worst: dict[str, float] = {}
    for _ in range(STEPS):
        with torch.no_grad():
            for p, e in zip(params, expected, strict=True):
                e.copy_(p)
                e.grad = torch.randn(e.shape, generator=generator).to(e.dtype)
                p.grad = e.grad.to(device)
        reference.load_state_dict(optimizer.state_dict())
        before = [e.detach().clone() for e in expected]
        optimizer.step()
        reference.step()
        group_of = {p: g for g in reference.param_groups for p in g["params"]}
        for p, e, b in zip(params, expected, before, strict=True):
            assert e.grad is not None
            group = group_of[e]
            actual, correct = _snapshot(p, optimizer), _snapshot(e, reference)
            scheme = scheme_of(group, e)
            if scheme.is_direct:
                decay = 0.0 if group["rule"] == "adamw" else group["weight_decay"]
                errors = worst_ulps(b, e.grad, actual, correct, decay)
            else:
                errors = steps_off(scheme, b, e.grad, actual, correct)
            worst = {name: max(value, worst.get(name, 0.0)) for name, value in errors.items()} | {
                name: value for name, value in worst.items() if name not in errors
            }
    return Verdict(label, case, worst, [p.detach().cpu().clone() for p in params])


def contestants(statuses: list[BackendStatus]) -> Iterator[tuple[str, str | Backend, torch.device]]:
    """Yield label, backend and device of each available backend but the reference; `cpu` once per instruction set."""
    for status in statuses:
        if not status.available or status.name == "reference":
            continue
        if status.name == "cpu":
            for isa in ("avx512", "avx2", "baseline"):
                try:
                    yield f"cpu ({isa})", CpuBackend(isa), torch.device("cpu")
                except RuntimeError:  # the processor lacks the instruction set
                    continue
        else:
            on_gpu = torch.cuda.is_available()
            yield (
                status.name,
                status.name,
                torch.device("cuda", 0) if on_gpu else torch.device("cpu"),
            )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--threads",
        type=positive(int),
        metavar="N",
        default=1,
        help="threads of torch (default 1: more wait for each other while other programs are busy)",
    )


def run(args: argparse.Namespace) -> int:
    """Print one line per backend and case; return 1 if any is out of bounds or bits differ between backends, else 0."""
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads)
    try:
        return _run()
    finally:
        torch.set_num_threads(threads)


def _run() -> int:
    statuses = backends()
    print(HEADING)
    failed = False
    first: dict[str, Verdict] = {}
    for label, backend, device in contestants(statuses):
        print(f"\n{label}", flush=True)
        before = updated_elements()
        for case in CASES:
            verdict = check(label, backend, device, case)
            peer = first.setdefault(case, verdict)
            has_same_bits = all(map(torch.equal, peer.final, verdict.final))
            print(_line(verdict, None if peer is verdict else peer, has_same_bits), flush=True)
            failed |= not verdict.passed or not has_same_bits
        if label.startswith("cpu"):
            after = updated_elements()
            taken = ", ".join(f"{after[path] - before[path]} {path}" for path in after)
            print(f"  elements by path: {taken}", flush=True)
    print()
    for status in statuses:
        if not status.available:
            print(_wrapped(f"{status.name} is not available: {status.reason}"))
    print("\nFAILED" if failed else "\nall available backends agree with the reference")
    return int(failed)


def _line(verdict: Verdict, peer: Verdict | None, has_same_bits: bool) -> str:
    """Return the line of a case; all figures of one that failed."""

    def figure(name: str) -> str:
        value = f"{verdict.worst[name]:.{2 if '%' in name else 1}f}"
        return f"{name} {value} ({BOUNDS[name]:g})"

    nearest = max(verdict.worst, key=lambda name: verdict.worst[name] / BOUNDS[name])
    status = "ok" if verdict.passed and has_same_bits else "FAIL"
    line = f"  {status:4s} {verdict.case:18s} {figure(nearest):24s}"
    if peer is not None:
        line += f" {'same' if has_same_bits else 'OTHER'} bits as {peer.backend}"
    lines = [line.rstrip()]
    if not verdict.passed:
        lines.append(_wrapped("; ".join(map(figure, verdict.worst)), indent=7))
    return "\n".join(lines)


def _wrapped(text: str, indent: int = 0) -> str:
    margin = " " * indent
    return textwrap.fill(
        text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )
