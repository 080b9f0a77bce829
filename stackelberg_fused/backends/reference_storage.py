"""From what is stored to what a rule works on, and back: what is correct, in PyTorch.

Everything is flat, in the order of the parameter's memory. Where fewer bits are kept than a rule computes, rounding is
stochastic, so that what a step adds is kept on the average, however small it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..groups.schemes import (
    EIGHT_BITS,
    FIRST_MOMENTS,
    Scheme,
    code_name,
    scale_name,
)
from ..numerics.codec import (
    FIRST_MOMENT,
    SECOND_MOMENT,
    Code,
    decode_blocks,
    encode_blocks,
    join,
    split,
    to_bfloat16,
    to_float16,
)


def code_of(moment: str) -> Code:
    """The code of 8 bits that a moment is stored in."""
    return FIRST_MOMENT if moment in FIRST_MOMENTS else SECOND_MOMENT


def read_weight(scheme: Scheme, param: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """float32 [n]: the weight that a parameter and what is stored beside it stand for."""
    if scheme.master == "kahan":
        # more than rounding takes is of another weight, which somebody has replaced since
        stored, lost = param.float(), state["kahan_comp"].float()
        return stored + torch.where(lost.abs() <= half_step(stored, scheme.param), lost, 0.0)
    if scheme.master in ("split16", "split8"):
        return join(param, state["remainder"])
    if scheme.master == "fp32":
        # a parameter that somebody has changed since counts, not what it was
        master = state["master"]
        return torch.where(same_bits(master.to(param.dtype), param), master, param.float())
    return param.float()


def write_weight(
    scheme: Scheme, weight: Tensor, param: Tensor, state: Mapping[str, Tensor], random: Tensor
) -> None:
    """Store float32 [n] as its scheme says.

    Args:
        random: int64 [n], of 16 random bits each.
    """
    if scheme.master == "stochastic":
        rounded = to_bfloat16 if scheme.param is torch.bfloat16 else to_float16
        param.copy_(rounded(weight, random))
    elif scheme.master in ("split16", "split8"):
        part, remainder = split(weight, 16 if scheme.master == "split16" else 8)
        param.copy_(part)
        state["remainder"].copy_(remainder)
    else:
        param.copy_(weight)
        if scheme.master == "kahan":
            lost = weight - param.float()
            state["kahan_comp"].copy_(torch.where(lost.isfinite(), lost, 0.0))
        elif scheme.master == "fp32":
            state["master"].copy_(weight)


def read_moment(scheme: Scheme, name: str, state: Mapping[str, Tensor], row: int) -> Tensor:
    """float32 [n]: what a stored moment stands for; `row` as in `write_moment`."""
    if scheme.state is EIGHT_BITS:
        return decode_blocks(state[code_name(name)], state[scale_name(name)], code_of(name), row)
    return state[name].float()


def write_moment(
    scheme: Scheme,
    name: str,
    moment: Tensor,
    state: Mapping[str, Tensor],
    random: Tensor,
    row: int,
) -> None:
    """Store float32 [n] as its scheme says.

    Args:
        random: int64 [n], of 16 random bits each.
        row: elements of a row of blocks, see `encode_blocks`.
    """
    if scheme.state is EIGHT_BITS:
        codes, scales = encode_blocks(moment, random, code_of(name), row)
        state[code_name(name)].copy_(codes)
        state[scale_name(name)].copy_(scales)
    elif scheme.state is torch.bfloat16:
        state[name].copy_(to_bfloat16(moment, random))
    else:
        state[name].copy_(moment)


def half_step(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [n]: the most that rounding to a dtype takes from weights that became these."""
    is_bfloat16 = dtype is torch.bfloat16
    exponent = (stored.view(torch.int32) & 0x7F800000).view(torch.float32)
    least = torch.finfo(dtype).tiny
    return exponent.clamp(min=least) * (2.0**-8 if is_bfloat16 else 2.0**-11)


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Compare the bits of two 16-bit tensors, elementwise."""
    return a.view(torch.int16) == b.view(torch.int16)
