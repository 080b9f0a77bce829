"""A Triton kernel that only moves the bytes of an Adam step: it reads p, g, m, v and writes p, m, v."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 4096


@triton.jit
def _stream(p_ptr, g_ptr, m_ptr, v_ptr, numel, BLOCK: tl.constexpr):
    # 64-bit, or a tensor above 2**31 elements wraps
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < numel
    p = tl.load(p_ptr + offset, mask=mask)
    g = tl.load(g_ptr + offset, mask=mask)
    m = tl.load(m_ptr + offset, mask=mask)
    v = tl.load(v_ptr + offset, mask=mask)
    # each value must be used, or the compiler drops its load
    tl.store(m_ptr + offset, m + g, mask=mask)
    tl.store(v_ptr + offset, v + g, mask=mask)
    tl.store(p_ptr + offset, p + g, mask=mask)


def stream(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, numel: int) -> None:
    """Pass once over four float32 arrays of `numel` elements; moves 28 bytes per element."""
    _stream[(triton.cdiv(numel, BLOCK),)](p, g, m, v, numel, BLOCK=BLOCK, num_warps=8)
