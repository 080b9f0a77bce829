"""Who stands in a row of fewer bits: parameters of 16 bits, states of 32, 16 or 8, and what keeps a weight exact.

torch's fused AdamW in float32 is in every such row, since its time is what all ratios are of: rows of different
states can be compared by them. Peers are in the row of the states that they have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from .contestant import (
    Contestant,
    Groups,
    Step,
    Verdict,
    anywhere,
    with_step,
)
from .peers import (
    installed,
    make_bitsandbytes,
    make_flashoptim,
    make_optimi,
    make_torch,
    make_torchao,
    ours,
    ours_available,
)
from .stored_bytes import Kept
from .workloads import HYPERPARAMETERS, TORCH_FUSED

FP32, BF16, BYTE = torch.float32, torch.bfloat16, torch.uint8
# `state_dtype` of ours, and how a row's name says it
STATES = {"float32": "float32 states", "bfloat16": "bfloat16 states", "8bit": "8-bit states"}
# `master` of ours for bfloat16 parameters, and what it keeps beside them
MASTERS: dict[str | None, torch.dtype | None] = {
    "stochastic": None,
    "split8": torch.int8,
    "split16": torch.int16,
    "kahan": BF16,
    None: None,
}
# one scale of a byte
OUR_BLOCK = 32


def kept_by_ours(param: torch.dtype, master: str | None, state: str) -> Kept:
    """Dtypes of ours."""
    beside = MASTERS[master]
    if state == "8bit":
        return Kept(param, BYTE, beside, BYTE, OUR_BLOCK)
    return Kept(param, getattr(torch, state), beside)


def _make_ours(
    master: str | None, state: str, groups: Groups
) -> tuple[torch.optim.Optimizer, Step]:
    import stackelberg_fused as sf

    optimizer = sf.StackelbergAdamW(groups, master=master, state_dtype=state, **HYPERPARAMETERS)
    return with_step(optimizer)


def _ours_available(device: str) -> Verdict:
    # the backends that take fewer bits, each on its own device
    return ours_available(device, device)


def _ours(state: str) -> list[Contestant]:
    stored = [(BF16, master) for master in MASTERS] + [(FP32, None)]
    found = []
    for param, master in stored:
        name = f"ours bf16 {master or 'nearest'}" if param is BF16 else "ours fp32"
        kept = kept_by_ours(param, master, state)
        make = functools.partial(_make_ours, master, state)
        found.append(_contestant(name, "ours", make, _ours_available, kept))
    reference = next(c for c in ours() if c.name == "ours reference")
    return [*found, reference]


def _contestant(
    name: str,
    family: str,
    make: Callable[[Groups], tuple[torch.optim.Optimizer, Step]],
    available: Callable[[str], Verdict],
    kept: Kept,
    compiled: bool = False,
) -> Contestant:
    return Contestant(
        name,
        family,
        make,
        available,
        compiled=compiled,
        bytes_per_parameter=kept.moved,
        dtype=kept.param,
    )


def _torch() -> list[Contestant]:
    fused = functools.partial(make_torch, fused=True)
    return [
        _contestant(TORCH_FUSED, "torch", fused, anywhere, Kept(FP32, FP32)),
        # its states are of the parameters' dtype
        _contestant("torch fused bf16", "torch", fused, anywhere, Kept(BF16, BF16)),
    ]


Peer = tuple[str, str, tuple[str, ...], Callable[[Groups], Any], Kept, bool]


def _peers(state: str) -> list[Peer]:
    """Name, package, where it runs, how to make it, what it keeps, whether it compiles first."""
    everywhere, gpu = ("cpu", "cuda"), ("cuda",)
    is_code = state == "8bit"
    flash = functools.partial(make_flashoptim, master_weight_bits=24, quantize=is_code)
    flashoptim = ("FlashOptim bf16 24-bit", "flashoptim", gpu, flash)
    bits = functools.partial(make_bitsandbytes, bits=8 if is_code else 32)
    bitsandbytes = ("bitsandbytes bf16", "bitsandbytes", everywhere, bits)
    kahan = functools.partial(make_optimi, kahan_sum=True)
    optimi = ("torch-optimi bf16 kahan", "optimi", everywhere, kahan)
    if state == "float32":
        return [(*bitsandbytes, Kept(BF16, FP32), False)]
    if state == "bfloat16":
        return [
            (*optimi, Kept(BF16, BF16, BF16), False),
            # its states are of the parameters' dtype where they are not quantized
            (*flashoptim, Kept(BF16, BF16, torch.int8), False),
        ]
    # a scale of a float32 for 256 elements
    codes = Kept(BF16, BYTE, None, FP32, 256)
    by_chance = functools.partial(make_torchao, bf16_stochastic_round=True)
    return [
        (*flashoptim, Kept(BF16, BYTE, torch.int8, torch.float16, 32), False),
        ("torchao bf16", "torchao", everywhere, make_torchao, codes, True),
        ("torchao bf16 stochastic", "torchao", everywhere, by_chance, codes, True),
        (*bitsandbytes, codes, False),
    ]


def narrow_contestants(state: str) -> list[Contestant]:
    """Everyone whose states are of that kind, and torch's; ours on the backend that "auto" takes."""
    others = [
        _contestant(
            name, "peer", make, functools.partial(installed, package, where), kept, compiled
        )
        for name, package, where, make, kept, compiled in _peers(state)
    ]
    return [*_ours(state), *_torch(), *others]
