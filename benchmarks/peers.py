"""torch's AdamW in its variants, and AdamW of the other libraries that are installed."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
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


# a fork of bitsandbytes under the same module name: either has to be in a folder of its own
CPU_FORK = "bitsandbytes-cpu-fork"


def installed(
    package: str, devices: tuple[str, ...], device: str, distribution: str | None = None
) -> Availability:
    """Tell whether a package is installed, by that distribution if one is named, and runs on a device."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return False, "not installed"
    if distribution is not None and not _is_from(spec, distribution):
        return False, f"not installed: another distribution provides {package}"
    if device not in devices:
        return False, f"runs on {' and '.join(devices)} only"
    return True, ""


def _is_from(spec: ModuleSpec, distribution: str) -> bool:
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    folders = [Path(folder).resolve() for folder in spec.submodule_search_locations or ()]
    return Path(str(found.locate_file(spec.name))).resolve() in folders


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


def make_bitsandbytes_cpu_fork(groups: Groups) -> OptimizerAndStep:
    """Build the AdamW of bitsandbytes' CPU fork with states of 8 bits."""
    # its AVX-512 library, in the wheel for most systems, takes one thread; its AVX2 library takes all
    os.environ.setdefault("BNB_CPU_DISABLE_AVX512", "1")
    return make_bitsandbytes(groups, bits=8)


def _make_deepspeed(groups: Groups) -> OptimizerAndStep:
    package = importlib.import_module("deepspeed.ops.adam")
    on_host = groups[0]["params"][0].device.type == "cpu"
    return _build(package.DeepSpeedCPUAdam if on_host else package.FusedAdam, groups)


EVERYWHERE, CPU_ONLY, GPU_ONLY = ("cpu", "cuda"), ("cpu",), ("cuda",)


def peer(
    name: str,
    package: str,
    devices: tuple[str, ...],
    make: Callable[[Groups], OptimizerAndStep],
    distribution: str | None = None,
    **fields: Any,
) -> Contestant:
    """Describe another library's optimizer; `fields` are further ones of `Contestant`.

    `distribution` is what has to provide the package, where several do.
    """
    available = functools.partial(installed, package, devices, distribution=distribution)
    return Contestant(name, "peer", make, available, **fields)


def peers() -> list[Contestant]:
    """Return other libraries' AdamW on float32 parameters and gradients; a name tells the bits of states."""
    # float32 parameters need no master bits
    flash32, flash8 = (
        functools.partial(make_flashoptim, master_weight_bits=None, quantize=quantize)
        for quantize in (False, True)
    )
    bits32, bits8 = (functools.partial(make_bitsandbytes, bits=bits) for bits in (32, 8))
    name = "bitsandbytes"
    eight_bit: dict[str, Any] = {"bytes_per_parameter": EIGHT_BIT_BYTES}
    return [
        peer("torch-optimi", "optimi", EVERYWHERE, make_optimi),
        peer("FlashOptim", "flashoptim", GPU_ONLY, flash32),
        peer("FlashOptim 8-bit", "flashoptim", GPU_ONLY, flash8, **eight_bit),
        peer("torchao 8-bit", "torchao", EVERYWHERE, make_torchao, compiled=True, **eight_bit),
        peer("bitsandbytes", name, EVERYWHERE, bits32, name),
        peer("bitsandbytes 8-bit", name, EVERYWHERE, bits8, name, **eight_bit),
        peer(
            f"{CPU_FORK} 8-bit", name, CPU_ONLY, make_bitsandbytes_cpu_fork, CPU_FORK, **eight_bit
        ),
        peer("DeepSpeed", "deepspeed", EVERYWHERE, _make_deepspeed, compiled=True),
    ]


def float32_contestants() -> list[Contestant]:
    """Return all contestants of a float32 row of the update alone, in the order of the table."""
    return [*ours_by_backend(), *torch_contestants(), *peers()]
