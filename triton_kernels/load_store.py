"""Loads of stored numbers as float32, and stores of float32: csrc/cuda/load_store.cuh in Triton.

FORMAT is a record's `format`; FULL: as in access.py.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ..groups.schemes import DTYPE_WORD, EIGHT_BITS, MASTER_WORD, STATE_WORD
from .access import Elements, load, store
from .codec import (
    INFINITY,
    MAGNITUDE,
    bits_of,
    compensated,
    compensation,
    decode,
    encode,
    float_of,
    from_bfloat16,
    from_float16,
    join,
    scales_of,
    split,
    to_bfloat16,
    to_bfloat16_by_chance,
    to_float16,
    to_float16_by_chance,
)

# the fields of a FORMAT: enum Dtype, StateKind and Master in csrc/tables.h
FLOAT32: tl.constexpr = tl.constexpr(DTYPE_WORD[torch.float32])
BFLOAT16: tl.constexpr = tl.constexpr(DTYPE_WORD[torch.bfloat16])
FLOAT16: tl.constexpr = tl.constexpr(DTYPE_WORD[torch.float16])
STATE16: tl.constexpr = tl.constexpr(STATE_WORD[torch.bfloat16])
STATE8: tl.constexpr = tl.constexpr(STATE_WORD[EIGHT_BITS])
STOCHASTIC: tl.constexpr = tl.constexpr(MASTER_WORD["stochastic"])
KAHAN: tl.constexpr = tl.constexpr(MASTER_WORD["kahan"])
SPLIT16: tl.constexpr = tl.constexpr(MASTER_WORD["split16"])
SPLIT8: tl.constexpr = tl.constexpr(MASTER_WORD["split8"])
MASTER32: tl.constexpr = tl.constexpr(MASTER_WORD["fp32"])


class Blocks(NamedTuple):
    """Blocks of a tile, each of BLOCK elements that share a scale.

    Attributes:
        elements: [blocks, BLOCK], of the parameter's buffers.
        scales: [blocks], of the buffers of its scales.
        within: int32 [blocks, BLOCK], places of the elements within the tile.
    """

    elements: Elements
    scales: Elements
    within: tl.tensor


@triton.jit
def widen(address, elements, DTYPE: tl.constexpr, FULL: tl.constexpr):
    """Load elements of a dtype as float32."""
    if DTYPE == FLOAT32:
        return load(address, elements, FULL, tl.float32)
    elif DTYPE == BFLOAT16:
        return from_bfloat16(load(address, elements, FULL, tl.uint16))
    else:
        return from_float16(load(address, elements, FULL, tl.uint16))


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """Round float32 to nearest, to the bits that elements of a dtype are stored as."""
    if DTYPE == FLOAT32:
        return x
    elif DTYPE == BFLOAT16:
        return to_bfloat16(x)
    else:
        return to_float16(x)


@triton.jit
def narrow(address, elements, x, DTYPE: tl.constexpr, FULL: tl.constexpr):
    """Store float32 as elements of a dtype, to nearest."""
    if DTYPE == FLOAT32:
        store(address, elements, x, FULL, tl.float32)
    else:
        store(address, elements, rounded(x, DTYPE), FULL, tl.uint16)


@triton.jit
def rounded_inside(bound, DTYPE: tl.constexpr, UP: tl.constexpr):
    """Return the end of an interval as the nearest number of a dtype that is inside of it: csrc/format.h.

    UP: it is the lower end.
    """
    magnitude = bits_of(bound) & MAGNITUDE
    sign = bits_of(bound) & 0x80000000
    outward = (bound > 0) == UP  # away from zero
    if DTYPE == BFLOAT16:
        toward = float_of(bits_of(bound) & 0xFFFF0000)
        away = (bits_of(toward) & MAGNITUDE) + 0x10000
    else:
        inside = tl.where(outward, bound, tl.clamp(bound, -65504.0, 65504.0))
        toward = from_float16(to_float16_by_chance(inside, sign & 0))
        size = bits_of(toward) & MAGNITUDE
        subnormal = bits_of(float_of(size) + 5.9604644775390625e-08)
        away = tl.where(size < 0x38800000, subnormal, size + 0x2000)
    nearest = tl.where(outward & (toward != bound), float_of(away | sign), toward)
    return tl.where((magnitude >= INFINITY) | (bound == 0), bound, nearest)


@triton.jit
def read_weights(param, beside, elements, FORMAT: tl.constexpr, FULL: tl.constexpr):
    """Load the float32 weights that parameters and the tensor beside them, the master, stand for."""
    DTYPE: tl.constexpr = FORMAT & 3
    MASTER: tl.constexpr = (FORMAT >> 4) & 7
    if MASTER == SPLIT16:
        parts = load(param, elements, FULL, tl.uint16)
        return join(parts, load(beside, elements, FULL, tl.uint16), 16)
    elif MASTER == SPLIT8:
        parts = load(param, elements, FULL, tl.uint16)
        return join(parts, load(beside, elements, FULL, tl.uint8), 8)
    elif MASTER == KAHAN:
        stored = widen(param, elements, DTYPE, FULL)
        lost = widen(beside, elements, DTYPE, FULL)
        return compensated(stored, lost, DTYPE == BFLOAT16)
    elif MASTER == MASTER32:
        stored = load(param, elements, FULL, tl.uint16)
        master = load(beside, elements, FULL, tl.float32)
        # a parameter that somebody has changed since counts, not what it was
        if DTYPE == BFLOAT16:
            return tl.where(to_bfloat16(master) == stored, master, from_bfloat16(stored))
        else:
            return tl.where(to_float16(master) == stored, master, from_float16(stored))
    else:
        return widen(param, elements, DTYPE, FULL)


@triton.jit
def write_weights(param, beside, elements, x, random, FORMAT: tl.constexpr, FULL: tl.constexpr):
    DTYPE: tl.constexpr = FORMAT & 3
    MASTER: tl.constexpr = (FORMAT >> 4) & 7
    if MASTER == STOCHASTIC:
        if DTYPE == BFLOAT16:
            store(param, elements, to_bfloat16_by_chance(x, random), FULL, tl.uint16)
        else:
            store(param, elements, to_float16_by_chance(x, random), FULL, tl.uint16)
    elif MASTER == SPLIT16:
        parts, remainders = split(x, 16)
        store(param, elements, parts, FULL, tl.uint16)
        store(beside, elements, remainders, FULL, tl.uint16)
    elif MASTER == SPLIT8:
        parts, remainders = split(x, 8)
        store(param, elements, parts, FULL, tl.uint16)
        store(beside, elements, remainders, FULL, tl.uint8)
    else:
        narrow(param, elements, x, DTYPE, FULL)
        if MASTER == KAHAN:
            if DTYPE == BFLOAT16:
                stored = from_bfloat16(to_bfloat16(x))
            else:
                stored = from_float16(to_float16(x))
            narrow(beside, elements, compensation(x, stored), DTYPE, FULL)
        elif MASTER == MASTER32:
            store(beside, elements, x, FULL, tl.float32)


@triton.jit
def read_moments(
    address,
    scale_address,
    blocks,
    ONE: tl.constexpr,
    KIND: tl.constexpr,
    FULL: tl.constexpr,
):
    """Load moments as float32; ONE: as in codec.py."""
    if KIND == STATE8:
        # of scales, a byte each, the buffer may begin anywhere
        exponents = load(scale_address, blocks.scales, False, tl.uint8).to(tl.uint32)
        return decode(load(address, blocks.elements, FULL, tl.uint8), exponents, ONE)
    elif KIND == STATE16:
        return widen(address, blocks.elements, BFLOAT16, FULL)
    else:
        return load(address, blocks.elements, FULL, tl.float32)


@triton.jit
def write_moments(
    address,
    scale_address,
    blocks,
    x,
    random,
    ONE: tl.constexpr,
    KIND: tl.constexpr,
    FULL: tl.constexpr,
):
    if KIND == STATE8:
        if not FULL:
            x = tl.where(blocks.elements.mask, x, 0.0)
        exponents = scales_of(x)
        store(address, blocks.elements, encode(x, exponents, random, ONE), FULL, tl.uint8)
        store(scale_address, blocks.scales, exponents.to(tl.uint8), False, tl.uint8)
    elif KIND == STATE16:
        store(address, blocks.elements, to_bfloat16_by_chance(x, random), FULL, tl.uint16)
    else:
        store(address, blocks.elements, x, FULL, tl.float32)
