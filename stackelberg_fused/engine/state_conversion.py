"""Conversion of state from one storage scheme to another, for state dicts of optimizers with other settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..backends.reference_storage import code_of, read_weight, same_bits
from ..groups.schemes import (
    EIGHT_BITS,
    MASTER_STATE,
    MOMENTS,
    Scheme,
    code_name,
    scale_name,
)
from ..layout.slot import Slot
from ..memory.arena import in_memory_order
from ..memory.sharding import local_tensor
from ..numerics.block_rows import block_row_of, scale_shape
from ..numerics.codec import (
    BLOCK,
    HALF,
    decode_blocks,
    encode_blocks,
)

SLICE = 2**20  # elements that are converted at a time: whole blocks


def as_stored(slot: Slot, entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the state with codes, and what is stored beside the weight, as the scheme of a slot has them.

    Moments are rounded to nearest. A weight keeps what its parameter lacks of it where the parameter is that weight
    rounded, as it is where a model is loaded before its optimizer; else the parameter counts. Other dtypes of floating
    point are left to whoever copies them.
    """
    # with sparse gradients, torch's SGD has sparse momentum
    found = {
        name: value.to_dense() if getattr(value, "layout", None) is torch.sparse_coo else value
        for name, value in entry.items()
    }
    for name in MOMENTS:
        value, codes = found.pop(name, None), found.pop(code_name(name), None)
        scales = found.pop(scale_name(name), None)
        if codes is not None:
            found |= _decoded(slot, name, codes, scales)
        elif value is not None:
            found |= _encoded(slot, name, value)
    beside = {n: found.pop(n) for n in set(MASTER_STATE.values()) if found.get(n) is not None}
    return found | _beside_weight(slot, beside)


def _decoded(slot: Slot, name: str, codes: Tensor, scales: Tensor) -> dict[str, Tensor]:
    """A moment of 8 bits as a slot has it."""
    local = local_tensor(codes)
    # blocks are of elements that lie side by side
    is_wanted = slot.scheme.state is EIGHT_BITS
    if is_wanted and local.stride() == slot.state_like(code_name(name)).stride():
        return {code_name(name): codes, scale_name(name): scales}
    return _encoded(slot, name, decoded(name, codes, scales))


def decoded(name: str, codes: Tensor, scales: Tensor) -> Tensor:
    """Return a moment of 8 bits in float32, in the layout of its codes; of a DTensor the local part."""
    local = local_tensor(codes)
    row, flat_scales = block_row_of(local), local_tensor(scales).reshape(-1)
    wide = torch.empty_strided(local.shape, local.stride(), device=local.device)
    flat, out = in_memory_order(local), in_memory_order(wide)
    for here, blocks in _slices(len(out), row):
        out[here] = decode_blocks(flat[here], flat_scales[blocks], code_of(name), row)
    return wide


def _encoded(slot: Slot, name: str, value: Tensor) -> dict[str, Tensor]:
    """A moment as a slot has it, and where that is of 8 bits, its scales."""
    if slot.scheme.state is not EIGHT_BITS:
        return {name: value}
    wide = _as_state(slot, code_name(name), local_tensor(value), torch.float32)
    flat = in_memory_order(wide)
    codes = torch.empty(len(flat), dtype=EIGHT_BITS, device=wide.device)
    scales = torch.empty(scale_shape(wide), dtype=EIGHT_BITS, device=wide.device)
    row, flat_scales = block_row_of(wide), scales.view(-1)
    half = HALF.to(wide.device)
    for here, blocks in _slices(len(flat), row):
        codes[here], flat_scales[blocks] = encode_blocks(flat[here], half, code_of(name), row)
    return {
        code_name(name): codes.as_strided(wide.shape, wide.stride()),
        scale_name(name): scales,
    }


def _slices(count: int, row: int) -> Iterator[tuple[slice, slice]]:
    """Elements and their blocks, a part at a time: what is calculated meanwhile takes many times their memory."""
    # of rows with a block that is not full, whole ones
    step, blocks = max(1, SLICE // row) * row if row else SLICE, SLICE // BLOCK
    if row:
        blocks = step // row * -(-row // BLOCK)
    for part, first in enumerate(range(0, count, step)):
        yield slice(first, first + step), slice(part * blocks, (part + 1) * blocks)


def _beside_weight(slot: Slot, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make the tensor beside a weight from the one that another scheme, or the same one, left there."""
    name = slot.scheme.master_name
    if name is None or not stored:
        return {}
    like = slot.state_like(name)
    if name in stored and local_tensor(stored[name]).dtype is like.dtype:
        return {name: stored[name]}
    param = in_memory_order(_as_state(slot, name, slot.local.detach(), slot.scheme.param))
    other, value = next(iter(stored.items()))
    value = in_memory_order(_as_state(slot, name, local_tensor(value), value.dtype))
    weight = read_weight(_scheme_with(other, value), param, {other: value})
    found = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=param.device)
    in_memory_order(found).copy_(_lacking(weight, param, like.dtype, name))
    return {name: found}


def _lacking(weight: Tensor, param: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Compute the tensor beside a parameter that has to stay as it is, though a scheme may round ties to another."""
    if name == "remainder":
        lower = weight.view(torch.int32).long() - (param.view(torch.int16).long() << 16)
        steps = lower if dtype is torch.int16 else (lower + 0x80) >> 8
        known = torch.iinfo(dtype)
        return torch.where(lower.abs() <= 0x8000, steps.clamp(known.min, known.max), 0)
    lost = weight - param.float()
    # a tie, and no more than that, goes to the parameter one step of float32 away from it
    near = torch.nextafter(weight, param.float())
    weight = torch.where(same_bits(weight.to(param.dtype), param), weight, near)
    is_it = same_bits(weight.to(param.dtype), param)
    if name == "kahan_comp":
        return torch.where(is_it & lost.isfinite(), lost, 0.0)
    return torch.where(is_it, weight, param.float())


def _scheme_with(name: str, value: Tensor) -> Scheme:
    """The scheme that leaves such a tensor beside a weight."""
    masters = {"kahan_comp": "kahan", "master": "fp32", "remainder": "split16"}
    master = "split8" if value.dtype is torch.int8 else masters[name]
    return Scheme(torch.bfloat16, master, torch.float32, False)


def _as_state(slot: Slot, name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in the layout of a slot's state, on its device."""
    like = slot.state_like(name)
    copy = torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=slot.local.device)
    return copy.copy_(value)
