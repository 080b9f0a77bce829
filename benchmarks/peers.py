"""Who can stand in a row: ours on each backend, torch's own, and the peers that are installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from .contestant import (
    Contestant,
    Groups,
    Step,
    Verdict,
    anywhere,
    plain,
    with_step,
)
from .workloads import ADAM_BYTES, HYPERPARAMETERS, TORCH_FUSED

SMALL = 1_000_000
# float32 p read and written, g read; two states of one byte read and written; scales left out
EIGHT_BIT_BYTES = 16


# --- ours


def _make_ours(backend: str, groups: Groups) -> tuple[torch.optim.Optimizer, Step]:
    import stackelberg_fused as sf

    return with_step(sf.StackelbergAdamW(groups, backend=backend, **HYPERPARAMETERS))


def ours_available(backend: str, device: str) -> Verdict:
    import stackelberg_fused as sf

    if backend in ("triton", "cuda") and device != "cuda":
        return False, "runs on a GPU"
    if backend == "cpu" and device != "cpu":
        return False, "runs on the host"
    for status in sf.backends():
        if status.name == backend:
            return status.available, status.reason
    return False, "not a backend of this version"


def ours() -> list[Contestant]:
    """One contestant per backend, `auto`'s preference first."""
    return [
        Contestant(
            f"ours {backend}",
            "ours",
            functools.partial(_make_ours, backend),
            functools.partial(ours_available, backend),
            exact=True,
            max_numel=SMALL if backend == "reference" else None,
        )
        for backend in ("cuda", "triton", "cpu", "reference")
    ]


# --- torch


def make_torch(groups: Groups, **kind: bool) -> tuple[torch.optim.Optimizer, Step]:
    """torch.optim.AdamW of that kind."""
    return with_step(torch.optim.AdamW(plain(groups), **HYPERPARAMETERS, **kind))


def _make_compiled(groups: Groups) -> tuple[torch.optim.Optimizer, Step]:
    import torch._inductor.config

    # no workers that go on compiling, and disturb the others, when the time box ends
    torch._inductor.config.compile_threads = 1
    optimizer, step = make_torch(groups, foreach=True)
    return optimizer, torch.compile(lambda: step())


def torch_contestants() -> list[Contestant]:
    """torch.optim.AdamW in each of its settings."""
    return [
        Contestant(TORCH_FUSED, "torch", functools.partial(make_torch, fused=True), anywhere),
        Contestant("torch foreach", "torch", functools.partial(make_torch, foreach=True), anywhere),
        Contestant(
            "torch for-loop",
            "torch",
            functools.partial(make_torch, foreach=False),
            anywhere,
            max_numel=200_000_000,
        ),
        Contestant("torch compiled", "torch", _make_compiled, anywhere, compiled=True),
    ]


# --- peers: each adapter says how the package spells the same AdamW


def installed(package: str, devices: tuple[str, ...], device: str) -> Verdict:
    """Whether a package is here and runs on a device."""
    if importlib.util.find_spec(package) is None:
        return False, "not installed"
    if device not in devices:
        return False, f"runs on {' and '.join(devices)} only"
    return True, ""


def _load(module: str) -> Any:
    return importlib.import_module(module)


def make_optimi(groups: Groups, **kind: Any) -> tuple[torch.optim.Optimizer, Step]:
    """torch-optimi's AdamW."""
    return with_step(_load("optimi").AdamW(plain(groups), **HYPERPARAMETERS, **kind))


def make_flashoptim(groups: Groups, **kind: Any) -> tuple[torch.optim.Optimizer, Step]:
    """FlashOptim's AdamW."""
    return with_step(_load("flashoptim").FlashAdamW(plain(groups), **HYPERPARAMETERS, **kind))


def make_torchao(groups: Groups, **kind: Any) -> tuple[torch.optim.Optimizer, Step]:
    """torchao's AdamW with states of 8 bits."""
    return with_step(_load("torchao.optim").AdamW8bit(plain(groups), **HYPERPARAMETERS, **kind))


def make_bitsandbytes(groups: Groups, bits: int) -> tuple[torch.optim.Optimizer, Step]:
    """bitsandbytes' AdamW with states of so many bits."""
    return with_step(
        _load("bitsandbytes.optim").AdamW(plain(groups), optim_bits=bits, **HYPERPARAMETERS)
    )


def _deepspeed(groups: Groups) -> tuple[torch.optim.Optimizer, Step]:
    adam = _load("deepspeed.ops.adam")
    on_host = groups[0]["params"][0].device.type == "cpu"
    kind = adam.DeepSpeedCPUAdam if on_host else adam.FusedAdam
    return with_step(kind(plain(groups), **HYPERPARAMETERS))


def peers() -> list[Contestant]:
    """Other libraries' AdamW on float32 parameters and gradients; states as the name says."""
    everywhere, gpu = ("cpu", "cuda"), ("cuda",)
    # float32 parameters need no master bits
    flashoptim = functools.partial(make_flashoptim, master_weight_bits=None)
    table: list[tuple[str, str, tuple[str, ...], Callable[[Groups], Any], int, bool]] = [
        ("torch-optimi", "optimi", everywhere, make_optimi, ADAM_BYTES, False),
        (
            "FlashOptim",
            "flashoptim",
            gpu,
            functools.partial(flashoptim, quantize=False),
            ADAM_BYTES,
            False,
        ),
        (
            "FlashOptim 8-bit",
            "flashoptim",
            gpu,
            functools.partial(flashoptim, quantize=True),
            EIGHT_BIT_BYTES,
            False,
        ),
        ("torchao 8-bit", "torchao", everywhere, make_torchao, EIGHT_BIT_BYTES, True),
        (
            "bitsandbytes",
            "bitsandbytes",
            everywhere,
            functools.partial(make_bitsandbytes, bits=32),
            ADAM_BYTES,
            False,
        ),
        (
            "bitsandbytes 8-bit",
            "bitsandbytes",
            everywhere,
            functools.partial(make_bitsandbytes, bits=8),
            EIGHT_BIT_BYTES,
            False,
        ),
        ("DeepSpeed", "deepspeed", everywhere, _deepspeed, ADAM_BYTES, True),
    ]
    return [
        Contestant(
            name,
            "peer",
            make,
            functools.partial(installed, package, devices),
            compiled=compiled,
            bytes_per_parameter=moved,
        )
        for name, package, devices, make, moved, compiled in table
    ]


def contestants() -> list[Contestant]:
    """Everyone, in the order of the table."""
    return [*ours(), *torch_contestants(), *peers()]
