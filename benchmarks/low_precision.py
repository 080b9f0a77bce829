"""Contestants of the low-precision rows: 16-bit parameters, and states of 32, 16 or 8 bits.

Each such row also has torch's fused AdamW in float32. All ratios refer to its time, so that rows of different
states can be compared. A peer is in the row of the states that it has.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

from .contestant import Availability, Contestant, available_everywhere, find_contestant
from .ours import make_ours, ours_available, ours_by_backend
from .peers import (
    EVERYWHERE,
    GPU_ONLY,
    make_bitsandbytes,
    make_flashoptim,
    make_optimi,
    make_torch,
    make_torchao,
    peer,
)
from .stored_bytes import StoredDtypes
from .workloads import TORCH_FUSED

FP32, BF16, BYTE = torch.float32, torch.bfloat16, torch.uint8
# our `state_dtype`, and its words in a row's name
STATES = {"float32": "float32 states", "bfloat16": "bfloat16 states", "8bit": "8-bit states"}
# our `master` for bfloat16 parameters, and the dtype of the further bits that it stores
MASTERS: dict[str | None, torch.dtype | None] = {
    "stochastic": None,
    "split8": torch.int8,
    "split16": torch.int16,
    "kahan": BF16,
    None: None,
}
# elements that share one scale of our 8-bit states; the scale is a byte
OUR_BLOCK = 32


def our_dtypes(param: torch.dtype, master: str | None, state: str) -> StoredDtypes:
    """Return the dtypes that our optimizer stores."""
    if state == "8bit":
        return StoredDtypes(param, BYTE, MASTERS[master], BYTE, OUR_BLOCK)
    return StoredDtypes(param, getattr(torch, state), MASTERS[master])


def _fields(dtypes: StoredDtypes) -> dict[str, Any]:
    return {"bytes_per_parameter": dtypes.moved, "dtype": dtypes.param}


def _ours_available(device: str) -> Availability:
    # the backend that "auto" takes bears the name of its device
    return ours_available(device, device)


def _ours(state: str) -> list[Contestant]:
    # one of them rounds to nearest on purpose
    warnings.filterwarnings("ignore", ".*rounded to nearest after every step")
    schemes = {
        **{f"ours bf16 {master or 'nearest'}": (BF16, master) for master in MASTERS},
        "ours fp32": (FP32, None),
    }
    contestants = [
        Contestant(
            name,
            "ours",
            functools.partial(make_ours, master=master, state_dtype=state),
            _ours_available,
            **_fields(our_dtypes(param, master, state)),
        )
        for name, (param, master) in schemes.items()
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
    kahan = functools.partial(make_optimi, kahan_sum=True)
    optimi = ("torch-optimi bf16 kahan", "optimi", EVERYWHERE, kahan)
    if state == "float32":
        return [peer(*bitsandbytes, **_fields(StoredDtypes(BF16, FP32)))]
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
        peer(*bitsandbytes, **codes),
    ]


def low_precision_contestants(state: str) -> list[Contestant]:
    """Return the contestants with states of that kind; ours run on the backend that "auto" takes."""
    return [*_ours(state), *_torch(), *_peers(state)]
