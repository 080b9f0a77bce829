"""Counter-based random numbers for stochastic rounding; csrc/random_bits.h has the same operations.

The random bits of an element depend only on the seed, the parameter, the step and the element's index in the whole
parameter. They do not depend on the backend, the number of threads, the launch, earlier calls, or how it is sharded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..memory.region import Region, whole_region
from ..native.tables import TILE_ELEMENTS

_WORD = 2**64 - 1
# odd multipliers that spread consecutive counters; _GOLDEN is 2**64 / golden ratio, the increment of SplitMix64
_GOLDEN, _SECOND = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03


def stream_key(seed: int, group: int, position: int) -> int:
    """Return the key of one parameter, in the range of int64.

    Args:
        seed: of the optimizer.
        group: the index of the parameter's group.
        position: the index of the parameter in its group.
    """
    key = _scrambled((_scrambled(seed + _GOLDEN) + group * _GOLDEN) & _WORD)
    key = _scrambled((key + position * _SECOND) & _WORD)
    return key - 2**64 if key >= 2**63 else key


def stream_of(key: int, step: int, index: int) -> tuple[int, int]:
    """Return two 32-bit words that TILE_ELEMENTS elements share, from `index * TILE_ELEMENTS` on."""
    word = _scrambled((key + step * _GOLDEN) & _WORD)
    word = _scrambled((word + index * _SECOND) & _WORD)
    return word & 0xFFFFFFFF, word >> 32


def random_bits(
    key: int, step: int, count: int, device: torch.device, region: Region | None = None
) -> Tensor:
    """Return 16 random bits for each element of a parameter, or of a part of it, in memory order: int64 [count].

    Two neighbouring elements have the halves of one mixed 32-bit word. The weight and the moments of an element use the
    same bits.

    Args:
        key: of the parameter, from `stream_key`.
        step: the number of the coming step, from 1.
        count: the number of elements.
        device: of the result.
        region: where these elements lie in the whole parameter; None: they are all of it.
    """
    start, run, stride = region or whole_region(count)
    local = torch.arange(count, device=device)
    index = start + local // max(run, 1) * stride + local % max(run, 1)
    used, of_element = (index // TILE_ELEMENTS).unique(return_inverse=True)
    streams = [stream_of(key, step, i) for i in used.tolist()]
    words = torch.tensor(streams, dtype=torch.int64, device=device).view(-1, 2)[of_element]
    first, second = words.unbind(1)
    within = index % TILE_ELEMENTS
    word = (first + within // 2 * 0x9E3779B9) & 0xFFFFFFFF
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & 0xFFFFFFFF
    word = word ^ second
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & 0xFFFFFFFF
    word = word ^ (word >> 16)
    return torch.where(within % 2 == 0, word & 0xFFFF, word >> 16)


def _scrambled(word: int) -> int:
    """Apply the finalizer of SplitMix64 (Steele, Lea & Flood 2014) to a 64-bit word."""
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
