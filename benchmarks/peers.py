"""torch's AdamW in its variants, and AdamW of the other libraries that are installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from .contestant import (
    Availability,
    Contestant,
    Groups,
    OptimizerAndStep,
    available_everywhere,
    with_step,
    without_roles,
)
from .ours import ours_by_backend
from .workloads import HYPERPARAMETERS, TORCH_FUSED

# float32 p read and written, g read; two states of one byte read and written; scales left out
EIGHT_BIT_BYTES = 16


# --- torch


def _build(optimizer: Any, groups: Groups, **options: Any) -> OptimizerAndStep:
    return with_step(optimizer(without_roles(groups), **HYPERPARAMETERS, **options))


def make_torch(groups: Groups, **options: bool) -> OptimizerAndStep:
    """Build torch.optim.AdamW; `fused` or `foreach` chooses its implementation."""
    return _build(torch.optim.AdamW, groups, **options)


def _make_compiled(groups: Groups) -> OptimizerAndStep:
    import torch._inductor.config

    # no worker processes: they would go on compiling, and disturb the others, after the time limit
    torch._inductor.config.compile_threads = 1
    optimizer, step = make_torch(groups, foreach=True)
    return optimizer, torch.compile(lambda: step())


def _make_merged(groups: Groups) -> OptimizerAndStep:
    merged: dict[tuple[float, float, str], dict[str, Any]] = {}
    for group in groups:
        key = group["lr"], group["weight_decay"], group["role"]
        merged.setdefault(key, group | {"params": []})["params"].extend(group["params"])
    return make_torch(list(merged.values()), fused=True)


def torch_merged() -> Contestant:
    """Return torch's fused AdamW over as few groups as the settings allow, which is free for anyone."""
    return Contestant(f"{TORCH_FUSED}, merged", "torch", _make_merged, available_everywhere)


def torch_contestants() -> list[Contestant]:
    """Return torch.optim.AdamW in each of its variants."""
    fused, foreach = (
        functools.partial(make_torch, **{kind: True}) for kind in ("fused", "foreach")
    )
    loop = functools.partial(make_torch, foreach=False)
    here = available_everywhere
    return [
        Contestant(TORCH_FUSED, "torch", fused, here),
        Contestant("torch foreach", "torch", foreach, here),
        Contestant("torch for-loop", "torch", loop, here, max_numel=200_000_000),
        Contestant("torch compiled", "torch", _make_compiled, here, compiled=True),
    ]


# --- peers: each function builds the same AdamW as its package spells it


def installed(package: str, devices: tuple[str, ...], device: str) -> Availability:
    """Tell whether a package is installed and runs on a device."""
    if importlib.util.find_spec(package) is None:
        return False, "not installed"
    if device not in devices:
        return False, f"runs on {' and '.join(devices)} only"
    return True, ""


def make_optimi(groups: Groups, **options: Any) -> OptimizerAndStep:
    """Build torch-optimi's AdamW."""
    return _build(importlib.import_module("optimi").AdamW, groups, **options)


def make_flashoptim(groups: Groups, **options: Any) -> OptimizerAndStep:
    """Build FlashOptim's AdamW."""
    return _build(importlib.import_module("flashoptim").FlashAdamW, groups, **options)


def make_torchao(groups: Groups, **options: Any) -> OptimizerAndStep:
    """Build torchao's AdamW with 8-bit states."""
    return _build(importlib.import_module("torchao.optim").AdamW8bit, groups, **options)


def make_bitsandbytes(groups: Groups, bits: int) -> OptimizerAndStep:
    """Build bitsandbytes' AdamW with states of 32 or 8 bits."""
    package = importlib.import_module("bitsandbytes.optim")
    return _build(package.AdamW, groups, optim_bits=bits)


def _make_deepspeed(groups: Groups) -> OptimizerAndStep:
    package = importlib.import_module("deepspeed.ops.adam")
    on_host = groups[0]["params"][0].device.type == "cpu"
    return _build(package.DeepSpeedCPUAdam if on_host else package.FusedAdam, groups)


EVERYWHERE, GPU_ONLY = ("cpu", "cuda"), ("cuda",)


def peer(
    name: str,
    package: str,
    devices: tuple[str, ...],
    make: Callable[[Groups], OptimizerAndStep],
    **fields: Any,
) -> Contestant:
    """Describe another library's optimizer; `fields` are further ones of `Contestant`."""
    return Contestant(name, "peer", make, functools.partial(installed, package, devices), **fields)


def peers() -> list[Contestant]:
    """Return other libraries' AdamW on float32 parameters and gradients; a name tells the bits of states."""
    # float32 parameters need no master bits
    flash32, flash8 = (
        functools.partial(make_flashoptim, master_weight_bits=None, quantize=quantize)
        for quantize in (False, True)
    )
    bits32, bits8 = (functools.partial(make_bitsandbytes, bits=bits) for bits in (32, 8))
    eight_bit = {"bytes_per_parameter": EIGHT_BIT_BYTES}
    return [
        peer("torch-optimi", "optimi", EVERYWHERE, make_optimi),
        peer("FlashOptim", "flashoptim", GPU_ONLY, flash32),
        peer("FlashOptim 8-bit", "flashoptim", GPU_ONLY, flash8, **eight_bit),
        peer("torchao 8-bit", "torchao", EVERYWHERE, make_torchao, compiled=True, **eight_bit),
        peer("bitsandbytes", "bitsandbytes", EVERYWHERE, bits32),
        peer("bitsandbytes 8-bit", "bitsandbytes", EVERYWHERE, bits8, **eight_bit),
        peer("DeepSpeed", "deepspeed", EVERYWHERE, _make_deepspeed, compiled=True),
    ]


def float32_contestants() -> list[Contestant]:
    """Return all contestants of a float32 row of the update alone, in the order of the table."""
    return [*ours_by_backend(), *torch_contestants(), *peers()]
