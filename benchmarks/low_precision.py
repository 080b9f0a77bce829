"""Contestants of the low-precision rows: 16-bit parameters, and states of 32, 16 or 8 bits.

Each such row also has torch's fused AdamW in float32. All ratios refer to its time, so that rows of different
states can be compared. A peer is in the row of the states that it has.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import torch

from .contestant import Availability, Contestant, available_everywhere, find_contestant
from .ours import make_ours, ours_available, ours_by_backend
from .peers import (
    CPU_FORK,
    CPU_ONLY,
    EVERYWHERE,
    GPU_ONLY,
    make_bitsandbytes,
    make_bitsandbytes_cpu_fork,
    make_flashoptim,
    make_optimi,
    make_torch,
    make_torchao,
    peer,
)
from .stored_bytes import StoredDtypes
from .workloads import TORCH_FUSED

FP32, BF16, FP16, BYTE = torch.float32, torch.bfloat16, torch.float16, torch.uint8
# our `state_dtype`, and its words in a row's name
STATES = {"float32": "float32 states", "bfloat16": "bfloat16 states", "8bit": "8-bit states"}
# our `master` for bfloat16 parameters, and the dtype of the further bits that it stores
MASTERS: dict[str | None, torch.dtype | None] = {
    "stochastic": None,
    "split8": torch.int8,
    "split16": torch.int16,
    "kahan": BF16,  # that of the parameter
    None: None,
}
# a scheme of ours: parameters, `master`, gradients
Scheme = tuple[torch.dtype, str | None, torch.dtype]
SCHEMES: dict[str, Scheme] = {
    **{f"ours bf16 {master or 'nearest'}": (BF16, master, BF16) for master in MASTERS},
    "ours fp32": (FP32, None, FP32),
}
# not with float32 states, where all together would not fit into the memory of a small machine
FURTHER_SCHEMES: dict[str, Scheme] = {
    "ours fp16 kahan": (FP16, "kahan", FP16),
    "ours bf16 split16, fp32 gradients": (BF16, "split16", FP32),
    "ours fp32, bf16 gradients": (FP32, None, BF16),
}
# elements that share one scale of our 8-bit states; the scale is a byte
OUR_BLOCK = 32


def our_dtypes(
    param: torch.dtype, master: str | None, state: str, grad: torch.dtype | None = None
) -> StoredDtypes:
    """Return the dtypes that our optimizer stores, and that of gradients where it is not the parameters'."""
    further = param if master == "kahan" else MASTERS[master]
    if state == "8bit":
        return StoredDtypes(param, BYTE, further, BYTE, OUR_BLOCK, grad)
    return StoredDtypes(param, getattr(torch, state), further, grad=grad)


def schemes(state: str) -> dict[str, Scheme]:
    """Return our schemes of a row by their contestants' names."""
    return SCHEMES if state == "float32" else SCHEMES | FURTHER_SCHEMES


def bytes_moved(name: str, state: str) -> float:
    """Return the bytes per parameter that a step of one of them moves at least, scales left out."""
    param, master, grad = schemes(state)[name]
    dtypes = our_dtypes(param, master, state, grad)
    return dataclasses.replace(dtypes, scale=None).moved


def _fields(dtypes: StoredDtypes) -> dict[str, Any]:
    return {
        "bytes_per_parameter": dtypes.moved,
        "dtype": dtypes.param,
        "grad_dtype": dtypes.grad,
    }


def _ours_available(is_mixed: bool, device: str) -> Availability:
    if is_mixed and not hasattr(torch.Tensor, "grad_dtype"):
        return False, "in this torch a gradient has the dtype of its parameter"
    # the backend that "auto" takes bears the name of its device
    return ours_available(device, device)


def _ours(state: str) -> list[Contestant]:
    # one of them rounds to nearest on purpose
    warnings.filterwarnings("ignore", ".*rounded to nearest after every step")
    contestants = [
        Contestant(
            name,
            "ours",
            functools.partial(make_ours, master=master, state_dtype=state),
            functools.partial(_ours_available, grad is not param),
            **_fields(our_dtypes(param, master, state, grad)),
        )
        for name, (param, master, grad) in schemes(state).items()
    ]
    return [*contestants, find_contestant(ours_by_backend(), "ours reference")]


def _torch() -> list[Contestant]:
    fused = functools.partial(make_torch, fused=True)
    # its states have the parameters' dtype
    by_dtype = {TORCH_FUSED: FP32, "torch fused bf16": BF16}
    return [
        Contestant(
            name, "torch", fused, available_everywhere, **_fields(StoredDtypes(dtype, dtype))
        )
        for name, dtype in by_dtype.items()
    ]


def _peers(state: str) -> list[Contestant]:
    is_8bit = state == "8bit"
    flash = functools.partial(make_flashoptim, master_weight_bits=24, quantize=is_8bit)
    flashoptim = ("FlashOptim bf16 24-bit", "flashoptim", GPU_ONLY, flash)
    bits = functools.partial(make_bitsandbytes, bits=8 if is_8bit else 32)
    bitsandbytes = ("bitsandbytes bf16", "bitsandbytes", EVERYWHERE, bits)
    fork = ("bitsandbytes-cpu-fork bf16", "bitsandbytes", CPU_ONLY, make_bitsandbytes_cpu_fork)
    kahan = functools.partial(make_optimi, kahan_sum=True)
    optimi = ("torch-optimi bf16 kahan", "optimi", EVERYWHERE, kahan)
    if state == "float32":
        return [
            peer(*bitsandbytes, distribution="bitsandbytes", **_fields(StoredDtypes(BF16, FP32)))
        ]
    if state == "bfloat16":
        return [
            peer(*optimi, **_fields(StoredDtypes(BF16, BF16, BF16))),
            # states that are not quantized have the parameters' dtype
            peer(*flashoptim, **_fields(StoredDtypes(BF16, BF16, torch.int8))),
        ]
    # one float32 scale for 256 elements
    codes = _fields(StoredDtypes(BF16, BYTE, None, FP32, 256))
    stochastic = functools.partial(make_torchao, bf16_stochastic_round=True)
    torchao = ("torchao", EVERYWHERE)
    return [
        peer(*flashoptim, **_fields(StoredDtypes(BF16, BYTE, torch.int8, torch.float16, 32))),
        peer("torchao bf16", *torchao, make_torchao, compiled=True, **codes),
        peer("torchao bf16 stochastic", *torchao, stochastic, compiled=True, **codes),
        peer(*bitsandbytes, distribution="bitsandbytes", **codes),
        peer(*fork, distribution=CPU_FORK, **codes),
    ]


def low_precision_contestants(state: str) -> list[Contestant]:
    """Return the contestants with states of that kind; ours run on the backend that "auto" takes."""
    return [*_ours(state), *_torch(), *_peers(state)]
