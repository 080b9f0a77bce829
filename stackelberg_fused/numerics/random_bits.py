"""Counter-based random numbers for stochastic rounding: csrc/random_bits.h, operation by operation.

What an element gets depends on the seed, its parameter, the step and its own index, and on nothing else: not on the
backend, on threads or tiles, nor on what ran before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..native.tables import TILE_ELEMENTS

_WORD = 2**64 - 1
_GOLDEN, _OF_TILE = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03


def stream_key(seed: int, group: int, position: int) -> int:
    """The key of one parameter, an int64.

    Args:
        seed: of the optimizer.
        group: index of the parameter's group.
        position: its index in the group.
    """
    key = _scrambled((_scrambled(seed + _GOLDEN) + group * _GOLDEN) & _WORD)
    key = _scrambled((key + position * _OF_TILE) & _WORD)
    return key - 2**64 if key >= 2**63 else key


def tile_stream(key: int, step: int, tile: int) -> tuple[int, int]:
    """Two words of 32 bits that all elements of a tile share."""
    word = _scrambled((key + step * _GOLDEN) & _WORD)
    word = _scrambled((word + tile * _OF_TILE) & _WORD)
    return word & 0xFFFFFFFF, word >> 32


def random_bits(key: int, step: int, count: int, device: torch.device) -> Tensor:
    """int64 [count]: for each element of a parameter, in the order of its memory, 16 random bits.

    Two neighbours have the halves of one mixed word of 32 bits; an element's weight and moments share what it has.

    Args:
        key: of the parameter.
        step: the count of the coming step, from 1.
    """
    tiles = -(-count // TILE_ELEMENTS)
    streams = [tile_stream(key, step, tile) for tile in range(tiles)]
    first, second = torch.tensor(streams, dtype=torch.int64, device=device).view(-1, 2, 1).unbind(1)
    pair = torch.arange(TILE_ELEMENTS // 2, device=device)
    word = (first + pair * 0x9E3779B9) & 0xFFFFFFFF
    word = word ^ (word >> 16)
    word = (word * 0x7FEB352D) & 0xFFFFFFFF
    word = word ^ second
    word = word ^ (word >> 15)
    word = (word * 0x846CA68B) & 0xFFFFFFFF
    word = word ^ (word >> 16)
    return torch.stack((word & 0xFFFF, word >> 16), -1).reshape(-1)[:count]


def _scrambled(word: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014)."""
    word &= _WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _WORD
    return word ^ (word >> 31)
